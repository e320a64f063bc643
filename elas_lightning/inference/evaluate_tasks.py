"""Downstream tasks: EleutherAI's lm-eval on our model object, without an export.

What is asked of the model is what lm-eval's own ``hf`` backend asks of an exported one, token by token: a request
without context is predicted from the end token, what does not fit is cut off at the left, rolling perplexity goes in
windows that do not overlap. Results are therefore comparable with published ones. Training never predicts anything
from an end token, so the first token of a rolling perplexity is a guess there; ``--text`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetGenerationError, DatasetsError
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.inference.generate import generate
from elas_lightning.nn.llama import Llama

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


class ElasLM(TemplateLM):
    """What lm-eval talks to.

    Args:
        model: In the phase it is to be judged in.
        tokenizer: The model's.
        length: Tokens the model sees at once.
        batch_size: Requests at a time; they are sorted by length first.
    """

    def __init__(self, model: Llama, tokenizer: TextTokenizer, length: int, batch_size: int) -> None:
        super().__init__()
        self.model = model
        self.text_tokenizer = tokenizer
        self.max_length = length
        self.batch_size = batch_size
        self.truncated = 0
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        """The end token, which also stands for an empty context."""
        return self.text_tokenizer.end_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; nothing is added, whatever ``add_special_tokens`` says, as there is no start token."""
        ids: list[int] = self.text_tokenizer.encode([string])[0][:-1].tolist()
        return ids

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for batch in self._by_length([len(context) + len(target) for _, context, target in requests]):
            rows, targets = [], []
            for i in batch:
                _, context, target = requests[i]
                if len(target) > self.max_length:
                    raise UserError(
                        f"--tasks: an answer of {len(target)} tokens does not fit into a window of "
                        f"{self.max_length}: give a longer --length, or a task with shorter answers"
                    )
                whole = context + target
                self.truncated += len(whole) > self.max_length + 1
                rows.append(whole[-(self.max_length + 1) :][:-1])
                targets.append(target)
            features = self.model.hidden(self._pad(rows))
            for i, row, target, feature in zip(batch, rows, targets, features, strict=True):
                # the head reads the positions that predict the answer, and no others
                logits = self.model.lm_head(feature[len(row) - len(target) : len(row)])
                ids = torch.tensor(target, device=self._device)
                log_p = logits.log_softmax(-1, dtype=torch.float32).gather(-1, ids[:, None])
                answers[i] = (float(log_p.sum()), bool((logits.argmax(-1) == ids).all()))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, cut into windows."""
        owners: list[int] = []
        windows: list[tuple[Any, list[int], list[int]]] = []
        for owner, request in enumerate(requests):
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, target in map(make_disjoint_window, pairs):
                owners.append(owner)
                windows.append((None, context, target))
        totals = [0.0] * len(requests)
        for owner, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_p
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts greedily up to a stop sequence, the end token or the task's number of tokens.

        Raises:
            UserError: The task samples, or leaves no room for a prompt.
        """
        prompts: list[list[int]] = []
        options: list[dict[str, Any]] = []
        for request in requests:
            prompt, given = request.args
            asked: dict[str, Any] = dict(normalize_gen_kwargs(given))
            room = self.max_length - asked["max_gen_toks"]
            if asked["do_sample"]:
                raise UserError("--tasks: a task that samples cannot be run: set do_sample to false in its file")
            if room < 1:
                raise UserError(
                    f"--tasks: the task generates up to {asked['max_gen_toks']} tokens, which leaves no room for a "
                    f"prompt in a window of {self.max_length}: give a longer --length, or set max_gen_toks in the "
                    "generation_kwargs of its file"
                )
            ids = self.tok_encode(prompt) or [self.prefix_token_id]
            self.truncated += len(ids) > room
            prompts.append(ids[-room:])
            options.append(asked)
        texts = []
        for prompt_ids, asked in zip(prompts, options, strict=True):
            new: list[int] = []
            for token in generate(
                self.model, prompt_ids, max_new_tokens=asked["max_gen_toks"], end_id=self.eot_token_id
            ):
                new.append(token)
                text = self.text_tokenizer.decode(new)
                if any(stop and stop in text for stop in asked["until"]):
                    break
            decoded = self.text_tokenizer.decode(new)
            texts.append(postprocess_generated_text(decoded, asked["until"], None))
        return texts

    def _by_length(self, lengths: Sequence[int]) -> list[list[int]]:
        """Batches of indices, the longest first, so that little is padding and a lack of memory shows at once."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def _pad(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """``(B, T)``, filled up at the right, where causal attention keeps it from mattering."""
        longest = max(map(len, rows))
        filled = [[*row, *[self.eot_token_id] * (longest - len(row))] for row in rows]
        return torch.tensor(filled, device=self._device)


def run_tasks(
    lm: ElasLM,
    names: Sequence[str],
    *,
    include: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Run tasks of lm-eval, or of the YAML files in a folder.

    Args:
        lm: The model.
        names: Tasks, groups or tags.
        include: A folder of task files, searched first.
        num_fewshot: Examples in the prompt; ``None`` leaves it to each task.
        limit: Examples of each task at most.

    Returns:
        lm-eval's ``results`` (``"metric,filter"`` to value, by task) with versions, number of shots and of samples,
        and ``truncated``: how many requests did not fit into a window.

    Raises:
        UserError: A task that does not exist, whose data cannot be had, or that the model cannot answer.
    """
    lm.truncated = 0
    manager = _manager_for(names, include)
    tasks = [task for name in names for task in _load(manager, name)]
    try:
        manager.load(tasks)  # as lm-eval will
    except ValueError as error:
        raise UserError(f"--tasks {','.join(names)}: {error}; name a group or tasks of it, not both") from error
    found = simple_evaluate(
        model=lm,
        tasks=tasks,
        num_fewshot=num_fewshot,
        batch_size=lm.batch_size,
        limit=limit,
        log_samples=False,
        task_manager=manager,
    )
    return {**{key: found[key] for key in _KEPT if key in found}, "truncated": lm.truncated}


def _manager_for(names: Sequence[str], include: Path | None) -> TaskManager:
    if include is not None:
        if not include.is_dir():
            raise UserError(f"--include {include}: there is no such folder; give one that holds task files (*.yaml)")
        # the index of the 14,000 tasks that lm-eval ships takes seconds to read
        own = TaskManager(include_path=str(include), include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(
            f"--tasks: lm-eval knows no task {unknown[0]!r}; `lm-eval ls tasks` lists what there is, and --include "
            "FOLDER adds task files of your own"
        )
    return manager


def _load(manager: TaskManager, name: str) -> list[Any]:
    """A name's group whole, so that its average is formed, or its tasks."""
    try:
        loaded = manager.load([name])
    # datasets raises a FileNotFoundError or ConnectionError of its own, both OSError, where data cannot be had
    except (OSError, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UserError(
            f"--tasks {name}: its data cannot be had ({reason}); tasks fetch their data from the hub on first use, "
            "or name local files under dataset_kwargs.data_files"
        ) from error
    group = loaded["groups"].get(name)
    return [group] if group is not None else list(loaded["tasks"].values())
