"""``elas eval``: a checkpoint's quality on text and on downstream tasks, as a table and as a file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from elas_lightning.errors import UserError
from elas_lightning.files import write_whole
from elas_lightning.inference.evaluate_text import TextScore, evaluate_text
from elas_lightning.inference.load import TrainedModel, load_model
from elas_lightning.result import finite
from elas_lightning.training.hardware import describe_environment

_OFF = "2:4 off"


@dataclass(frozen=True)
class Evaluation:
    """What to measure of a checkpoint.

    Args:
        checkpoint: A model, as :func:`~elas_lightning.inference.load.load_model` takes it.
        text: Files and folders of text; each gives one row.
        tasks: Names of lm-eval tasks.
        include: A folder of task files.
        dense: Measure a second time with the 2:4 step switched off.
        length: Tokens the model sees at once; ``None`` takes the run's sequence length.
        stride: Tokens from one window of a document to the next (text only); ``None`` takes ``length``.
        batch_size: Windows or requests at a time.
        limit: Documents of each text and examples of each task at most.
        num_fewshot: Examples in a task's prompt; ``None`` leaves it to the task.
        device: Where to compute; ``None`` takes a GPU if there is one.
        command: What a person types to measure it again.
    """

    checkpoint: Path
    text: Sequence[Path] = ()
    tasks: Sequence[str] = ()
    include: Path | None = None
    dense: bool = False
    length: int | None = None
    stride: int | None = None
    batch_size: int = 16
    limit: int | None = None
    num_fewshot: int | None = None
    device: str | None = None
    command: str = "elas eval"

    def __post_init__(self) -> None:
        if not self.text and not self.tasks:
            raise UserError("there is nothing to measure: give --text FILE, --tasks NAME, or both")
        if self.tasks and find_spec("lm_eval") is None:
            raise UserError("--tasks needs lm-eval: pip install 'elas-lightning[eval]'")
        if not self.text and self.stride is not None:
            raise UserError("--stride is read with --text only: remove it")
        least_of = {"length": 2, "stride": 1, "batch_size": 1, "limit": 1, "num_fewshot": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give {least} or more")


def evaluate(request: Evaluation) -> dict[str, Any]:
    """Measure a checkpoint.

    Returns:
        Plain types, as ``--json`` writes them: ``checkpoint``, ``step``, ``run``, ``length``, ``stride``,
        ``batch_size``, ``limit``, ``text`` (a list of :class:`TextScore` with its ``sparsity``), ``tasks`` (by
        ``sparsity``: what lm-eval found) and ``environment``.

    Raises:
        UserError: The checkpoint, a text or a task cannot be had, or an option does not fit the model.
    """
    trained = load_model(request.checkpoint, request.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    length, stride = _window(request, trained)
    texts: list[dict[str, Any]] = []
    tasks: dict[str, Any] = {}
    for name, active in _phases(trained, request.dense).items():
        trained.model.set_sparsity(active)
        for path in request.text:
            score = evaluate_text(
                trained.model,
                trained.tokenizer,
                path,
                length=length,
                stride=stride,
                batch_size=request.batch_size,
                limit=request.limit,
            )
            texts.append({"sparsity": name, **asdict(score)})
        if request.tasks:
            tasks[name] = _run_tasks(request, trained, length)
    environment = describe_environment(trained.model.embed_tokens.weight.device, request.command)
    if request.tasks:
        environment["versions"]["lm_eval"] = version("lm_eval")
    result = trained.result
    return {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "run": None if result is None else {"name": result.run, "seed": result.seed, "data": result.data},
        "length": length,
        "stride": stride if request.text else None,
        "batch_size": request.batch_size,
        "limit": request.limit,
        "text": texts,
        "tasks": tasks,
        "environment": environment,
    }


def _window(request: Evaluation, trained: TrainedModel) -> tuple[int, int]:
    """Tokens that the model sees at once, and from one window of a document to the next."""
    length = request.length or trained.sequence_length
    stride = request.stride or length
    if stride > length:
        raise UserError(
            f"--stride is {stride}, longer than the window of {length}: tokens would be left out; give {length} or less"
        )
    return length, stride


def _run_tasks(request: Evaluation, trained: TrainedModel, length: int) -> dict[str, Any]:
    # imports lm-eval, which is optional
    from elas_lightning.inference.evaluate_tasks import ElasLM, run_tasks

    model = ElasLM(trained.model, trained.tokenizer, length, request.batch_size)
    return run_tasks(
        model, request.tasks, include=request.include, num_fewshot=request.num_fewshot, limit=request.limit
    )


def _phases(trained: TrainedModel, dense: bool) -> dict[str, bool]:
    """The phases to measure in, by what tables call them: whether the 2:4 step is on."""
    active = trained.model.sparsity_active
    if not dense:
        return {"2:4 on" if active else _OFF: active}
    if not active:
        raise UserError("--dense switches the 2:4 step off, but this model has none at its step: leave --dense out")
    return {"2:4 on": True, _OFF: False}


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`evaluate` found, on a console that takes no markup: brackets in a name are a part of it."""
    say = partial(console.print, soft_wrap=True, highlight=False)
    hardware = found["environment"]["hardware"]
    say(f"{found['checkpoint']}, step {found['step']}; windows of {found['length']} tokens; {hardware}")
    if found["text"]:
        table = _table(("text", "sparsity"), ("documents", "tokens", "loss", "perplexity", "bits/byte"))
        for row in found["text"]:
            score = TextScore(**{key: value for key, value in row.items() if key != "sparsity"})
            table.add_row(
                Path(score.source).name,
                row["sparsity"],
                f"{score.documents:,}",
                f"{score.tokens:,}",
                f"{score.loss:.4f}",
                f"{score.perplexity:.2f}",
                f"{score.bits_per_byte:.4f}",
            )
        console.print(table)
    if found["tasks"]:
        table = _table(("task", "metric", "sparsity"), ("shots", "examples", "value", "± s.e."))
        for sparsity, result in found["tasks"].items():
            for row in task_rows(result):
                table.add_row(row[0], row[1], sparsity, *row[2:])
        console.print(table)
        for sparsity, result in found["tasks"].items():
            if result["truncated"]:
                say(
                    f"{result['truncated']} requests ({sparsity}) were longer than {found['length']} tokens and lost "
                    "their beginning"
                )


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    """Names are folded where a terminal is narrow, never cut off."""
    return Table(
        *(Column(name, overflow="fold") for name in names), *(Column(name, justify="right") for name in numbers)
    )


def task_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """``(task, metric, shots, examples, value, standard error)`` of lm-eval's results, one row a metric."""
    rows = []
    for task, values in result["results"].items():
        shots = str(result["n-shot"].get(task, ""))
        samples = str(result["n-samples"].get(task, {}).get("effective", ""))
        for key, value in sorted(values.items()):
            metric, comma, chain = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chain}")
            shown = metric if chain == "none" else f"{metric} ({chain})"
            spread = f"{error:.4f}" if isinstance(error, float) and math.isfinite(error) else ""
            rows.append((task, shown, shots, samples, f"{value:.4f}", spread))
    return rows


def write(found: Mapping[str, Any], path: Path) -> None:
    """Write what :func:`evaluate` found as JSON, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        write_whole(path, json.dumps(finite(found), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written ({error.strerror or error})") from error
