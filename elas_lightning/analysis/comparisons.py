"""Which points a sweep compares, two at a time and paired by seed: what its table, its answer and a figure speak of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import side_name
from elas_lightning.analysis.points import Point, baseline, contrasts, describe, difference, gather
from elas_lightning.analysis.statistics import Difference, paired_difference


class Compared(NamedTuple):
    """A level of a parameter against another one, all else equal.

    Args:
        where: the levels of the other parameters, in words; empty where there is none.
        level, base: names of the two sides.
        difference: in the sweep's objective; None where they share no finished seed.
        by_seed: the same of each seed alone.
    """

    where: str
    level: str
    base: str
    difference: Difference | None
    by_seed: Mapping[int, float]


def comparisons(results: SweepResults) -> list[Compared]:
    """Each level of the sweep's contrasts against its baseline, at every combination of the other parameters.

    The two sides differ in the contrast alone; none is picked as the best, so that p means what it says. Empty when
    the sweep has no contrast.
    """
    return [found for name, base in contrasts(results) for found in comparisons_of(results, name, base)]


def comparisons_of(results: SweepResults, name: str, base: str = "") -> list[Compared]:
    """Each level of one parameter against ``base``, else the sweep's baseline; without what stands among twins."""
    base = base or dict(contrasts(results)).get(name) or baseline(results, name, {})
    parameter = results.parameter(name)
    pairs = [(side_name(parameter, level), base) for level in parameter.levels]
    return _wherever(results, name, [pair for pair in pairs if pair[0] != base and pair not in _twins(results, name)])


def twin_comparisons(results: SweepResults, name: str = "") -> list[Compared]:
    """Each choice that the sweep names a twin for against it, likewise: a family of its own, since it asks another
    question than what all are held against. Twins are of the first parameter; of another ``name`` there are none."""
    name = name or results.names[0]
    return _wherever(results, name, _twins(results, name))


def _twins(results: SweepResults, name: str) -> list[tuple[str, str]]:
    return list((results.summary.get("twins") or {}).items()) if name == results.names[0] else []


def _wherever(results: SweepResults, name: str, pairs: Iterable[tuple[str, str]]) -> list[Compared]:
    """Pairs of a parameter's levels wherever all else is equal and both have finished runs."""
    by_context: dict[str, dict[str, Point]] = {}
    for point in gather(results, results.names, results.objective):
        if point.values:
            context = describe(results, {key: level for key, level in point.levels.items() if key != name})
            by_context.setdefault(context, {})[side_name(results.parameter(name), point.levels[name])] = point
    return [
        Compared(context, level, base, *_differences(results, sides[level], sides[base]))
        for context, sides in by_context.items()
        for level, base in pairs
        if level in sides and base in sides
    ]


def _differences(results: SweepResults, a: Point, b: Point) -> tuple[Difference | None, dict[int, float]]:
    unit = metric_of(results.objective).difference
    single = {
        seed: found.value
        for seed in a.values
        if (found := paired_difference({seed: a.values[seed]}, b.values, unit)) is not None
    }
    return difference(a, b, results.objective), single
