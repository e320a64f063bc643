"""``elas account``: what a configuration, or every one that ships, costs in parameters, FLOPs and bytes.

Nothing is built: all figures come from ``elas_lightning.nn.account``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from elas_lightning.configuration import resolve
from elas_lightning.errors import UserError
from elas_lightning.layout import overlay_path, shipped_folder
from elas_lightning.nn.account import (
    TrainingStep,
    activations,
    flops_by_part,
    flops_per_token,
    kv_cache_bytes,
    memory_account,
    parameter_account,
)
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.training.optimizers import OptimizerConfig, optimizer_state_entries

# what trainer.precision may also say; None is the trainer's own default
_PRECISIONS = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class StepRequest:
    """What the command line says of the step; None takes the configuration's own.

    Raises:
        UserError: A value that no step can have.
    """

    batch: int | None = None
    sequence: int | None = None
    precision: str | None = None
    device: str | None = None
    checkpointing: str | None = None

    def __post_init__(self) -> None:
        # refused once, whatever the configuration
        self._over(batch=1, sequence=1, precision="32-true", device="cpu", checkpointing="none")

    def step(self, resolved: dict[str, Any]) -> TrainingStep:
        """The step of a whole configuration, changed as asked.

        Raises:
            UserError: It cannot be.
        """
        data, trainer = resolved["data"], resolved["trainer"]
        return self._over(
            batch=data["batch_size"],
            sequence=data["sequence_length"],
            precision=str(trainer["precision"]),
            device="cpu" if trainer["accelerator"] == "cpu" else "cuda",
            checkpointing=resolved["model"]["config"]["checkpointing"],
        )

    def _over(self, **configured: Any) -> TrainingStep:
        asked = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        step = {**configured, **asked}
        return TrainingStep(**{**step, "precision": _PRECISIONS.get(step["precision"], step["precision"])})


def account(config: ModelConfig, optimizer: OptimizerConfig, step: TrainingStep) -> dict[str, Any]:
    """All accounts of one model, optimizer and step, as plain types."""
    remembered = optimizer_state_entries(optimizer, config)
    memory = memory_account(config, step, remembered["total"])
    return {
        "model": asdict(config),
        "step": asdict(step),
        "parameters": parameter_account(config),
        "flops_per_token": flops_by_part(config, step.sequence, step.checkpointing),
        "optimizer": {"name": optimizer.name, "entries": remembered},
        "memory": memory,
        "full_rank_steps": _full_rank_steps(config, optimizer, step, memory),
        "kept": [asdict(tensor) for tensor in activations(config, step)],
        "kv_cache_bytes_per_sequence": kv_cache_bytes(config, 1, step.sequence, step.product_bytes),
    }


def _full_rank_steps(
    config: ModelConfig, optimizer: OptimizerConfig, step: TrainingStep, memory: dict[str, Any]
) -> dict[str, int] | None:
    """What learns in ReLoRA's steps before its factors do, and its bytes; the rest is as in the steps with factors."""
    if config.weights.method != "relora" or not config.weights.relora_full_rank_cycles:
        return None
    full = replace(config, attention_rank=None, ffn_rank=None, weights=WeightsConfig())
    trained = parameter_account(full)["trained"]["total"]
    gradients = step.parameter_bytes * trained
    state = step.parameter_bytes * optimizer_state_entries(optimizer, full)["total"]
    total = memory["total"] - memory["gradients"] - memory["optimizer"] + gradients + state
    return {"trained": trained, "gradients": gradients, "optimizer": state, "total": total}


def account_of(
    overlays: Sequence[Path], overrides: dict[str, Any], request: StepRequest, json_path: Path | None
) -> None:
    """Print the account of a stack of overlays, and write it as JSON if asked.

    Raises:
        UserError: The configuration or the step cannot be.
    """
    resolved = resolve(overlays, overrides)
    found = account(*_model(resolved), request.step(resolved))
    console = Console()
    for table in (_parts_table(found), _memory_table(found)):
        console.print(table)
    if full := found["full_rank_steps"]:
        console.print(
            f"This is of the steps with factors. In those at full rank before them {full['trained']:,} parameters "
            f"learn: gradients {_size(full['gradients'])}, optimizer state {_size(full['optimizer'])}, at most "
            f"{_size(full['total'])} at once",
            highlight=False,
        )
    _write(json_path, found)


def account_of_all(overrides: dict[str, Any], request: StepRequest, json_path: Path | None) -> None:
    """Print one line for each size and method that ships, and write the lines as JSON if asked.

    Raises:
        UserError: The step cannot be, or the overlays are not there.
    """
    rows, refused = [], []
    for size in _names("sizes"):
        for method in _names("methods"):
            try:
                stack = [overlay_path(f"sizes/{size}"), overlay_path(f"methods/{method}")]
                rows.append({"size": size, "method": method, **_row(resolve(stack, overrides), request)})
            except UserError as error:
                refused.append(f"{size} {method}: {error}")
    if not rows:
        raise UserError(refused[0])
    rows.sort(key=lambda row: row["hidden_size"])  # stable, so that methods keep their order
    console = Console()
    console.width = max(console.width, 170)  # a column cut off says nothing; a terminal wraps
    console.print(_all_table(rows))
    if any(row["method"] == "relora" for row in rows):
        console.print("relora: of its steps with factors; --config says what those at full rank before them take")
    for line in refused:
        console.print(f"not possible: {line}", markup=False)
    _write(json_path, rows)


def _names(kind: str) -> list[str]:
    return sorted(path.stem for path in (shipped_folder("experiments") / kind).glob("*.yaml"))


def _model(resolved: dict[str, Any]) -> tuple[ModelConfig, OptimizerConfig]:
    model = resolved["model"]
    return ModelConfig.from_mapping(model["config"]), OptimizerConfig(**model["optimizer"])


def _row(resolved: dict[str, Any], request: StepRequest) -> dict[str, Any]:
    config, optimizer = _model(resolved)
    step = request.step(resolved)
    parameters = parameter_account(config)
    flops = flops_per_token(config, step.sequence)
    memory = memory_account(config, step, optimizer_state_entries(optimizer, config)["total"])
    kinds = memory.pop("activations_by_kind")
    return {
        "hidden_size": config.hidden_size,
        **asdict(step),
        "parameters": parameters["stored"]["total"],
        "parameters_trained": parameters["trained"]["total"],
        "parameters_deployed": parameters["deployed"]["total"],
        "flops_per_token": flops["total"],
        "flops_with_24": flops["flops_with_24"],
        **memory,
        "ffn_activations": kinds.get("ffn", 0),
        "kv_cache_bytes_per_sequence": kv_cache_bytes(config, 1, step.sequence, step.product_bytes),
    }


def _write(path: Path | None, found: object) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"--json {path} cannot be written ({error.strerror}): give a file in a folder that is there"
        ) from error


def _parts_table(found: dict[str, Any]) -> Table:
    step, flops = found["step"], found["flops_per_token"]
    kept = found["memory"]["activations_by_kind"]
    table = Table(
        title=f"By part: {step['batch']} x {step['sequence']} tokens, {step['precision']}, "
        f"{step['device']}, checkpointing {step['checkpointing']}; FLOPs a token"
    )
    for name in ("part", "parameters", "FLOPs forward", "backward", "kept"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for part in ("embedding", "attention", "attention_scores", "ffn", "norms", "head"):
        counted = found["parameters"]["stored"].get(part)
        table.add_row(
            part.replace("_", " "),
            "" if counted is None else f"{counted:,}",
            *(f"{flops[way][part]:,}" if part in flops[way] else "" for way in ("forward", "backward")),
            _size(kept[part]) if part in kept else "",
        )
    table.add_section()
    totals = [f"{flops[way]['total']:,}" for way in ("forward", "backward")]
    table.add_row("total", f"{found['parameters']['stored']['total']:,}", *totals, _size(sum(kept.values())))
    halved = [f"{flops[way]['flops_with_24']:,}" for way in ("forward", "backward")]
    table.add_row("2:4 products at half", "", *halved, "")
    table.add_row("computed again", "", "", f"{flops['recomputed']['total']:,}", "")
    return table


_MEMORY_ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "weight_copies": "copies of weights, kept for backward",
    "activations": "kept for backward",
    "logits": "a chunk of logits, while head and loss run",
    "recomputed": "a block, while backward has it again",
}


def _memory_table(found: dict[str, Any]) -> Table:
    table = Table(title="Memory of a training step (GB = 1e9 bytes)")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    table.add_column("", justify="right")
    for key, name in _MEMORY_ROWS.items():
        table.add_row(name, f"{found['memory'][key]:,}", _size(found["memory"][key]))
    table.add_section()
    total, cache = found["memory"]["total"], found["kv_cache_bytes_per_sequence"]
    table.add_row("at most at once", f"{total:,}", _size(total))
    table.add_row("generation: keys and values of one sequence", f"{cache:,}", _size(cache))
    return table


def _all_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Every size and method; memory of one micro-batch")
    columns = ("size", "method", "batch", "parameters", "FLOPs/token", "with 2:4", "weights", "gradients",
               "optimizer", "activations", "of it FFN", "logits", "at most")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name in ("size", "method") else "right", no_wrap=True)
    for row in rows:
        sizes = ("weights", "gradients", "optimizer", "activations", "ffn_activations", "logits", "total")
        table.add_row(
            row["size"],
            row["method"],
            f"{row['batch']}x{row['sequence']}",
            f"{row['parameters'] / 1e6:,.1f} M",
            *(f"{row[key] / 1e6:,.1f} M" for key in ("flops_per_token", "flops_with_24")),
            *(_size(row[key]) for key in sizes),
        )
    return table


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"
