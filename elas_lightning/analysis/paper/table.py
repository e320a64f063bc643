"""The table of methods: each with its spread, its costs, and what it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from elas_lightning.analysis.equivalence import MARGIN, Equivalence, pair, verdict
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.paper.load import method_names, seeds_of
from elas_lightning.analysis.parameters import level_name
from elas_lightning.analysis.points import Point, amount, gather
from elas_lightning.analysis.statistics import Difference, holm
from elas_lightning.analysis.tables import Table, p_text
from elas_lightning.analysis.wording import decimals_of, interval, lost, number, plural, plus_minus, signed

NOT_RUN = "not run yet"
# The paper's "weights + gradients" come to this at every size but one. It is what the tables of the GaLore family count
# under another name: a weight and Adam's two moments in bfloat16 (arXiv 2403.03507, table 2).
_PUBLISHED_BYTES = 6
_CAPTION = (
    "Mean ± half of the 95 % t-interval over seeds; in brackets what is missing from the mean. Differences are "
    "paired by seed, with their 95 % interval in brackets; p is corrected over the column (Holm). Equivalence is "
    f"two one-sided tests with a margin of {100 * MARGIN:g} % stated beforehand, corrected likewise; “not shown” "
    f"is neither equal nor different. Weights and gradients as the paper counts them, {_PUBLISHED_BYTES} bytes a "
    "parameter. Speeds are of runs made one after another, not side by side: an indication, no claim. Peak memory "
    "is the highest of a method's runs: what was allocated on a GPU, or the whole process on a CPU."
)


@dataclass(frozen=True)
class Comparison:
    """A method against another, paired by seed.

    Args:
        method, against: their names.
        difference: in per cent of perplexity; None where they share no finished seed.
        equivalence: the test that they are the same up to a margin.
        p: of the difference, after Holm's correction over the family.
        p_equivalence: of the equivalence, likewise.
    """

    method: str
    against: str
    difference: Difference | None
    equivalence: Equivalence
    p: float | None
    p_equivalence: float | None


def methods(results: SweepResults, metric: str | None = None) -> dict[str, Point]:
    """The point of each method that has begun, in the objective or another metric.

    Methods are the choices of the first parameter; the others, if any, stand at their best.
    """
    parameter = results.parameters[0]
    found = gather(results, [parameter.name], metric or results.objective)
    return {level_name(parameter, point.levels[parameter.name]): point for point in found}


def against_twins(results: SweepResults) -> list[Comparison]:
    """Each method that has a twin against it: the family that the paper's claim rests on."""
    twins: Mapping[str, str] = results.summary.get("twins") or {}
    return _family(results, list(twins.items()))


def against_baseline(results: SweepResults) -> list[Comparison]:
    """Each method against the one that is listed first: a family of its own, since it is another question."""
    base, *others = method_names(results)
    return _family(results, [(other, base) for other in others])


def _family(results: SweepResults, pairs: list[tuple[str, str]]) -> list[Comparison]:
    points = methods(results)
    tests = []
    for method, against in pairs:
        a, b = points.get(method), points.get(against)
        lost = sum(point.counts["diverged"] for point in (a, b) if point)
        tests.append(pair(a.values if a else {}, b.values if b else {}, lost))
    p = holm([difference.p if difference else None for difference, _ in tests])
    p_equivalence = holm([equivalence.p for _, equivalence in tests])
    return [
        Comparison(method, against, difference, equivalence, p[i], p_equivalence[i])
        for i, ((method, against), (difference, equivalence)) in enumerate(zip(pairs, tests, strict=True))
    ]


def methods_table(results: SweepResults) -> Table:
    """Every method of the sweep's file, in its order; those without a run stand in it as missing."""
    points, speed = methods(results), methods(results, "tokens_per_second")
    objective = metric_of(results.objective)
    listed = method_names(results)
    base = listed[0]
    by_twin = {found.method: found for found in against_twins(results)}
    by_base = {found.method: found for found in against_baseline(results)}
    rows = []
    for method in listed:
        point, twin, first = points.get(method), by_twin.get(method), by_base.get(method)
        count, flops, memory = (
            amount(results, point, column) if point else None
            for column in ("parameters", "flops_per_token", "peak_memory_bytes")
        )
        rows.append(
            (
                method,
                _millions(count),
                number(count * _PUBLISHED_BYTES * 1e-9) if count else "",
                _spread(point, objective.scale, seeds_of(results)),
                *_difference(first),
                twin.against if twin else "",
                *_difference(twin),
                verdict(twin.equivalence, twin.difference, twin.p_equivalence) if twin and point else "",
                _millions(flops),
                _ratio(speed.get(method), speed.get(base)),
                _millions(memory),
            )
        )
    columns = (
        "Method",
        "Parameters (M)",
        "Weights + gradients (GB)",
        objective.label,
        f"Against {base} (%)",
        "p (Holm)",
        "Its dense twin",
        "Against the twin (%)",
        "p (Holm)",
        f"Equivalent within {100 * MARGIN:g} %?",
        "Training MFLOPs per token",
        f"Tokens/s, times {base}",
        "Peak memory (MB)",
    )
    return Table(_CAPTION, columns, tuple(rows), 1)


def _spread(point: Point | None, scale: float, planned: int) -> str:
    if point is None:
        return NOT_RUN
    absent = lost(point.counts)
    if missing := planned - sum(point.counts.values()):
        absent.append(f"{missing} {NOT_RUN}")
    value = plus_minus(point.estimate, scale) if point.estimate else "none"
    return f"{value} ({', '.join(absent)} of {plural(planned, 'seed')})" if absent else value


def _difference(found: Comparison | None) -> tuple[str, str]:
    """Value with interval, and p; empty where nothing is compared."""
    if found is None:
        return "", ""
    d = found.difference
    if d is None:
        return "no shared seed", ""
    value = signed(d.value, decimals_of(d))
    return (value, "") if d.low is None else (f"{value} ({interval(d)})", p_text(found.p))


def _millions(value: float | None) -> str:
    return number(value * 1e-6) if value else ""


def _ratio(a: Point | None, b: Point | None) -> str:
    if a is None or b is None or a.estimate is None or b.estimate is None:
        return ""
    return f"{a.estimate.mean / b.estimate.mean:.2f}"
