"""What the paper's referees asked, each with what the result files say to it, or why they say nothing yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from elas_lightning.analysis.answer import USUAL_TOKENS_PER_PARAMETER, about_twins, tokens_per_parameter
from elas_lightning.analysis.comparisons import comparisons
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.paper.load import EVALUATIONS, OURS, Paper, method_names, seeds_of
from elas_lightning.analysis.paper.memory import accounts, memory_sentences
from elas_lightning.analysis.paper.scaling import scaling_answers, scaling_series
from elas_lightning.analysis.paper.speed import speed_answers
from elas_lightning.analysis.paper.table import against_twins, methods
from elas_lightning.analysis.paper.verdicts import close_to_twin
from elas_lightning.analysis.parameters import level_name, lower_first
from elas_lightning.analysis.plots.telemetry import QUANTITIES, at_common_steps
from elas_lightning.analysis.statistics import Difference, estimate
from elas_lightning.analysis.wording import compare, compare_many, listing, number, plural, plus_minus

_HIDDEN = "ffn_hidden"
# More of them are a table, and the part's own section has it.
_MOST_CONTRASTS = 4


@dataclass(frozen=True)
class Question:
    """A referee's question and what is known.

    Args:
        number: in the order of the reviews.
        asked: the question.
        answered: what was measured, in sentences.
        open: what was not, each with its reason.
        sections: ids and names of the sections with the figures.
    """

    number: int
    asked: str
    answered: list[str]
    open: list[str]
    sections: list[tuple[str, str]]

    @property
    def state(self) -> str:
        """How far it is answered."""
        if not self.answered:
            return "not yet"
        return "in part" if self.open else "answered"


def questions(paper: Paper) -> list[Question]:
    """All eight."""
    found = []
    for place, (asked, answer, parts) in enumerate(_ASKED, start=1):
        said = list(answer(paper))
        links = [(f"part-{part}", part) for part in parts if part in paper.parts]
        answered = [text for known, text in said if known]
        open_ = [text for known, text in said if not known]
        found.append(Question(place, asked, answered, open_, [*links, *_SECTIONS.get(place, ())]))
    return found


_Answer = Callable[[Paper], Iterator[tuple[bool, str]]]


def _baselines(paper: Paper) -> Iterator[tuple[bool, str]]:
    results = paper.table
    if results is None:
        yield False, "No table of methods has been run."
        return
    done = {name: point for name, point in methods(results).items() if point.estimate}
    if done:
        least = min(point.counts["complete"] for point in done.values())
        yield (
            True,
            f"{plural(len(done), 'method')} have finished runs, each with at least {least} of the {seeds_of(results)} "
            "planned seeds; initialisation and data order are seeded apart. "
            f"{plural(len(paper.trials), 'run')} in all, on "
            f"{listing(paper.hardware) if paper.hardware else 'hardware that was not recorded'}; batch, versions and "
            "the command of each run are in its result file.",
        )
    for found in against_twins(results):
        if found.method == OURS:
            yield found.difference is not None, close_to_twin(found)
    if waiting := [method for method in method_names(results) if method not in done]:
        yield False, f"Without a finished run yet: {listing(waiting)}."
    yield from _part(paper, "activation_ablation", "Squared ReLU and 2:4 apart")


def _memory(paper: Paper) -> Iterator[tuple[bool, str]]:
    results = paper.table
    found = accounts(results) if results else {}
    if results is None or not found:
        yield False, "No result file of the table has an account of bytes."
    else:
        ours = found.get(OURS)
        twin = found.get((results.summary.get("twins") or {}).get(OURS, ""))
        yield (
            True,
            f"The account of {plural(len(found), 'method')} is worked out from the configuration, part by part.",
        )
        if ours and twin and ours.get("activations") and twin.get("activations"):
            share = 100 * (ours["activations"] / twin["activations"] - 1)
            yield (
                True,
                f"Activations of {OURS} come to {number(ours['activations'] * 1e-6)} MB a micro-batch, "
                f"{number(share)} % against its dense twin.",
            )
    said = memory_sentences(paper)
    yield from ((True, sentence) for sentence in said)
    if not said:
        yield (
            False,
            "Whether the saving survives checkpointing and long sequences: there is no record of "
            "benchmarks/memory_account.py.",
        )


def _matched(paper: Paper) -> Iterator[tuple[bool, str]]:
    yield from _part(paper, "matched_ablation", "A dense low-rank model with the same FLOPs, and with the same memory")
    yield from _part(paper, "rank_ablation", "How perplexity depends on the rank, with and without 2:4")
    yield from _twins(paper, "width_ablation", "Half the width, for as many FLOPs as 2:4")
    yield from _twins(paper, "budget_ablation", "The same with more training tokens")
    yield from _twins(paper, "pattern_ablation", "What the structure costs, beside as many kept without it")
    if paper.table is not None and paper.table.trials["flops_per_token"].notna().any():
        yield True, "FLOPs a token stand in the table of methods."


def _part(paper: Paper, part: str, what: str) -> Iterator[tuple[bool, str]]:
    """The comparisons of a part in a sentence for each contrast, or that it has not been run."""
    results = paper.parts.get(part)
    if results is None:
        yield False, f"{what}: {_why_absent(paper, part)}."
        return
    if (captions := paper.captions(part)) and (results.trials["state"] == "complete").any():
        yield True, f"{what}: {lower_first(captions[0])}"
    pairs: dict[tuple[str, str], dict[str, Difference]] = {}
    for where, level, base, difference, _ in comparisons(results):
        if difference is not None:
            pairs.setdefault((level, base), {})[where or "all else equal"] = difference
    if not pairs:
        yield False, f"{what}: the sweep {part} has no finished pair of runs yet."
    for (level, base), found in list(pairs.items())[:_MOST_CONTRASTS]:
        if len(found) == 1:
            ((where, difference),) = found.items()
            text = compare(difference, level, base, "" if where == "all else equal" else f" with {where}")
        else:
            text = compare_many(found, level, base)
        yield True, f"{what}: {text}."


def _twins(paper: Paper, part: str, what: str) -> Iterator[tuple[bool, str]]:
    """What a part found of choices beside their twins, or that it has not."""
    results = paper.parts.get(part)
    if results is None:
        yield False, f"{what}: {_why_absent(paper, part)}."
    elif said := about_twins(results):
        yield True, f"{what}: {lower_first(said)}"
    else:
        yield False, f"{what}: the sweep {part} has no finished pair of runs yet."


def _why_absent(paper: Paper, part: str) -> str:
    return f"the sweep {part} has not been run" if part in paper.absent else "no part of this document asks it"


def _telemetry(paper: Paper) -> Iterator[tuple[bool, str]]:
    results = paper.table
    rows = _telemetry_rows(results) if results is not None else None
    if results is None or rows is None:
        yield False, f"No finished run of {OURS} in the table has telemetry."
    else:
        for column, (_, noun, scale, unit) in QUANTITIES.items():
            if column not in rows or rows[column].notna().sum() == 0:
                continue
            known = at_common_steps(rows[rows[column].notna()])
            if known.empty:
                yield False, f"The runs have the {noun} at no step in common."
                continue
            ends = []
            for step in (known["step"].min(), known["step"].max()):
                by_seed = known[known["step"] == step].groupby("seed")[column].mean()
                if (found := estimate((scale * by_seed).to_list())) is not None:
                    ends.append(f"{plus_minus(found)}{unit} at step {step:.0f}")
            yield True, f"The {noun}, averaged over layers, goes from {' to '.join(ends)}."
        missing = [column for column in ("gradient_cosine", "mask_drift") if column not in rows]
        if missing:
            yield False, f"These runs did not record {listing([QUANTITIES[c].noun for c in missing])}."
    yield from _part(paper, "warmup_ablation", "Dense warm-up")
    yield from _twins(paper, "method_24_ablation", "Other choices of two of four beside the two largest")
    yield from _twins(paper, "backward_ablation", "Other gradients, and backward with 2:4, too")


def _telemetry_rows(results: SweepResults) -> pd.DataFrame | None:
    if "site" not in results.telemetry:
        return None
    name = results.parameters[0].name
    rows = results.telemetry
    ours = rows[name].map(lambda level: level_name(results.parameter(name), level)) == OURS
    rows = rows[ours & (rows["site"] == _HIDDEN) & (rows["state"] == "complete")]
    return rows if len(rows) else None


def _downstream(paper: Paper) -> Iterator[tuple[bool, str]]:
    tasks = {
        name: [task for found in (record.get("tasks") or {}).values() for task in (found.get("results") or {})]
        for name, record in paper.evaluations.items()
    }
    if not any(tasks.values()):
        yield (
            False,
            "No downstream task has been measured: a sweep removes the checkpoints of its finished runs. elas eval "
            f"with --tasks and --json {paper.folder}/{EVALUATIONS}/NAME.json brings results into this document.",
        )
    for name, found in tasks.items():
        if found:
            yield True, f"{name}: zero-shot tasks {listing(sorted(set(found)))}; the numbers stand in their section."
    ratio = tokens_per_parameter(paper.trials) if len(paper.trials) else None
    if ratio is not None:
        low, high = ratio.min(), ratio.max()
        enough = low >= USUAL_TOKENS_PER_PARAMETER
        text = f"Runs saw {number(low)} to {number(high)} training tokens per parameter"
        rest = "" if enough else ", so an order seen here may change with a larger budget"
        yield enough, f"{text}; {USUAL_TOKENS_PER_PARAMETER} were asked for{rest}."
    yield from _part(paper, "budget_ablation", "More training tokens")


def _elsewhere(paper: Paper) -> Iterator[tuple[bool, str]]:
    results = paper.parts.get("placement_ablation")
    done = results is not None and (results.trials["state"] == "complete").any()
    if results is None or not done:
        yield False, "Other placements are asked by the sweep placement_ablation, which has no finished run yet."
    else:
        yield from _part(paper, "placement_ablation", "Placement")
    yield from _part(paper, "sequence_length_ablation", "Long context")
    yield from _part(paper, "experts_ablation", "Mixtures of experts")


def _scale(paper: Paper) -> Iterator[tuple[bool, str]]:
    yield from scaling_answers(scaling_series(paper))
    largest = paper.trials["parameters"].max() if len(paper.trials) else np.nan
    if not np.isfinite(largest) or largest < 1e9:
        yield False, "Nothing near 3B to 7B has been trained with this suite."


_SECTIONS = {
    1: [("methods", "the table of methods")],
    2: [("speed", "speed")],
    3: [("memory", "memory")],
    4: [("methods", "the table of methods")],
    6: [("tasks", "downstream tasks")],
    8: [("scaling", "loss against size")],
}

_ASKED: list[tuple[str, _Answer, tuple[str, ...]]] = [
    (
        "Baselines without sparsity, error bars over at least three seeds, ablations that separate squared ReLU from "
        "2:4; hardware, batch, code and number of runs.",
        _baselines,
        ("activation_ablation", "initialization_ablation", "lr_sweep"),
    ),
    (
        "Speed against low rank without sparsity, not only against full rank; whole training steps and prefill, not "
        "only the FFN.",
        speed_answers,
        (),
    ),
    (
        "A full account of memory for every method, with and without activation checkpointing, for large batches and "
        "long sequences.",
        _memory,
        (),
    ),
    (
        "A dense model of lower rank at the same FLOPs or memory: is sparsity better than less rank? FLOPs of each "
        "method.",
        _matched,
        ("matched_ablation", "rank_ablation", "width_ablation", "budget_ablation", "pattern_ablation"),
    ),
    (
        "How far is the natural pattern of squared ReLU from the 2:4 choice, by layer and over training? What does "
        "the straight-through estimator do to gradients? Convergence for different warm-ups.",
        _telemetry,
        ("warmup_ablation", "method_24_ablation", "backward_ablation", "paper_table"),
    ),
    ("Downstream tasks, not only perplexity; at least 20 tokens per parameter.", _downstream, ("budget_ablation",)),
    (
        "Can the inputs of other linear layers be 2:4 too? Does it hold with mixtures of experts and long context?",
        _elsewhere,
        ("placement_ablation", "sequence_length_ablation", "experts_ablation"),
    ),
    ("Scaling at 3B to 7B, or an honest extrapolation.", _scale, ("scaling",)),
]
