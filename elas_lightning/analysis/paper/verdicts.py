"""The sentences that the paper stands or falls with, worked out either way."""

from __future__ import annotations

from collections import Counter

from elas_lightning.analysis.answer import USUAL_TOKENS_PER_PARAMETER, tokens_per_parameter
from elas_lightning.analysis.equivalence import ALPHA, MARGIN, sentence_of
from elas_lightning.analysis.load import SweepResults, planned_runs
from elas_lightning.analysis.paper.load import OURS, Paper, method_names
from elas_lightning.analysis.paper.table import Comparison, against_twins, methods
from elas_lightning.analysis.points import Point, best_of, difference
from elas_lightning.analysis.statistics import Difference, holm
from elas_lightning.analysis.tables import p_text
from elas_lightning.analysis.wording import (
    compare,
    decimals_of,
    interval,
    listing,
    lost,
    number,
    plural,
    plus_minus,
    seeds_phrase,
    signed,
)

# How far from its dense twin ELAS may be, in per cent of perplexity, for this suite to say that it keeps up.
_CLOSE = 1.0


def verdicts(paper: Paper) -> list[str]:
    """The document's answer: ELAS against its twin, the winner among ours, what is lost and what is missing."""
    results = paper.table
    if results is None:
        return ["No table of methods has been run, so there is no answer yet."]
    said = []
    for found in against_twins(results):
        if found.method == OURS:
            said.append(close_to_twin(found))
            test = sentence_of(found.equivalence, found.p_equivalence, found.method, found.against)
            said.append(f"{test[:1].upper()}{test[1:]}.")
    if not said:
        said.append(f"The table holds no run of {OURS} and its dense twin yet, so there is no answer.")
    said.append(winner(results))
    said += budget(results)
    said.append(completeness(paper))
    return said


def close_to_twin(found: Comparison) -> str:
    """Whether the difference is within one per cent: shown, not shown, or plainly not."""
    d, a, b = found.difference, found.method, found.against
    if d is None:
        return f"{a} and {b} share no finished seed, so nothing can be said of their difference."
    if found.equivalence.lost:
        return (
            f"Of the runs of {a} and {b}, {plural(found.equivalence.lost, 'run')} diverged: {a} is not within "
            f"{_CLOSE:g} % of {b}, whatever the others say."
        )
    value = f"{signed(d.value, decimals_of(d))} %"
    if d.low is None or d.high is None:
        return f"{a} is {value} from {b} in perplexity in the one seed they share, too few to say how sure that is."
    span = f"{value}, 95 % interval {interval(d)}, paired over {plural(d.n, 'seed')}"
    if d.low > -_CLOSE and d.high < _CLOSE:
        return f"{a} is within {_CLOSE:g} % of its dense low-rank twin, {b}, in perplexity ({span})."
    if abs(d.value) <= _CLOSE:
        return (
            f"The mean of {a} is within {_CLOSE:g} % of its dense low-rank twin, {b}, but the interval is not "
            f"({span}): so few seeds do not show it."
        )
    if d.low > _CLOSE or d.high < -_CLOSE:
        side = "worse" if d.value > 0 else "better"
        return f"{a} is not within {_CLOSE:g} % of its dense low-rank twin, {b}: it is {side} ({span})."
    return (
        f"{a} is not within {_CLOSE:g} % of its dense low-rank twin, {b}, by its mean ({span}), though the interval "
        "leaves room for it."
    )


def contenders(results: SweepResults) -> list[str]:
    """ELAS and its variants among the methods."""
    return [method for method in method_names(results) if method == OURS or method.startswith(f"{OURS} ")]


def winner(results: SweepResults) -> str:
    """Which of our own contenders has the lowest perplexity, and whether that is more than chance."""
    points = methods(results)
    ours = contenders(results)
    done = {name: points[name] for name in ours if name in points and points[name].values}
    waiting = [name for name in ours if name not in done]
    has = "has" if len(waiting) == 1 else "have"
    rest = f" ({listing(waiting)} {has} no finished run yet)" if waiting else ""
    if not done:
        return f"None of our contenders has a finished run yet: {listing(ours) if ours else 'none is listed'}."
    if len(done) == 1:
        (name,) = done
        return f"Of our own contenders only {name} has finished runs{rest}, so there is no winner among them."
    top, estimate = best_of(list(done.values()), results.objective)
    (first,) = [name for name, point in done.items() if point is top]
    value = f"{plus_minus(estimate)} ({seeds_phrase(estimate.n)})"
    said = f"Among our own contenders {first} comes first with {value}{rest}"
    back = [_loss_of(name, point) for name, point in done.items() if _stands_back(point, top)]
    if back:
        said += f", where {listing(back)}"
    if top.counts["diverged"]:
        return f"{said}: none with enough finished seeds is without a diverged run, so there is no winner among them."
    if first == OURS:
        others = [name for name, point in done.items() if name != OURS and not _stands_back(point, top)]
        if not others:
            return f"{said}, so that nothing with as many seeds is there to beat plain {OURS}."
        return f"{said}: {listing(others)} {'does' if len(others) == 1 else 'do'} not beat plain {OURS}."
    if OURS not in done:
        return f"{said}; plain {OURS}, which it would have to beat, has no finished run."
    family = {name: difference(done[name], done[OURS], results.objective) for name in done if name != OURS}
    tested = {name: found for name, found in family.items() if found is not None and found.p is not None}
    adjusted = dict(zip(tested, holm([found.p for found in tested.values()]), strict=True))
    return f"{said}; {_beats(family[first], first, adjusted.get(first), len(tested))}."


def _stands_back(point: Point, top: Point) -> bool:
    """Whether a point has lost runs or has fewer of them than the best: one lucky seed is no contender."""
    return point.counts["diverged"] > 0 or point.counts["complete"] < top.counts["complete"]


def _loss_of(name: str, point: Point) -> str:
    found = [f"{point.counts[state]} {state}" for state in ("complete", "diverged") if point.counts[state]]
    return f"{name} has only {listing(found)} {'run' if sum(point.counts.values()) == 1 else 'runs'}"


def _beats(found: Difference | None, first: str, adjusted: float | None, tested: int) -> str:
    """The first one against plain ELAS; it was picked for its mean, so that its p is corrected for all of them."""
    text = compare(found, first, f"plain {OURS}")
    if found is None or adjusted is None or not found.found or found.value >= 0:
        return text
    if tested == 1:
        return f"{text}, so it beats plain {OURS} beyond the interval"
    picked = f"picked as the best of {tested} (p {p_text(adjusted)}, Holm)"
    if adjusted < ALPHA:
        return f"{text}, so it beats plain {OURS} beyond the interval, also as one {picked}"
    return f"{text}, but it was {picked}, so that it is not shown to beat plain {OURS}"


def budget(results: SweepResults) -> list[str]:
    """What these runs are beside those that the paper's claim is about; nothing where the budget is the usual one."""
    ratio = tokens_per_parameter(results.trials)
    if ratio is None or ratio.max() >= USUAL_TOKENS_PER_PARAMETER:
        return []
    millions = results.trials["parameters"].max() / 1e6
    return [
        f"These are models of up to {number(millions)} million parameters that saw {number(ratio.max())} tokens per "
        f"parameter, not the {USUAL_TOKENS_PER_PARAMETER} of a trained model: they show the order at this size and "
        "budget and neither confirm nor refute the paper's figures."
    ]


def completeness(paper: Paper) -> str:
    """How much of what was planned is there, over all parts."""
    planned = sum(planned_runs(part.summary) for part in paper.parts.values())
    trials = paper.trials
    counts = Counter(trials["state"]) if len(trials) else Counter()
    text = f"{counts['complete']} of {planned} planned runs in {plural(len(paper.parts), 'part')} completed"
    if said := lost(counts):
        text += f"; {listing(said)}, kept and shown below"
    if waiting := planned - len(trials):
        text += f"; {waiting} not made yet"
    if paper.absent:
        text += f"; without any file: {listing(list(paper.absent))}"
    return f"{text}."


def statistics_note() -> list[str]:
    """How to read the numbers of the document."""
    return [
        "Each seed gives a run its initial weights and, from another number, its order of data; both are in its "
        "result file. Means are over seeds, ± is half of the 95 % t-interval, differences are paired by seed and "
        "taken between log-perplexities.",
        "Where several comparisons stand in a table, their p are corrected together (Holm), so that the chance of "
        "even one false finding in it stays at 5 %.",
        "“No difference was found” means that the interval includes zero: it bounds the difference and does not show "
        f"that there is none. “Equivalent within {100 * MARGIN:g} %” is a claim with a test of its own: the 90 % "
        "interval lies within the margin on both sides.",
        "A run that diverged has no perplexity. It is counted wherever its point is shown, and a method with a "
        "diverged run is never called equivalent to another.",
    ]
