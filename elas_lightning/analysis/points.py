"""Gather runs into points: one combination of parameter levels with its seeds.

Plots and tables share this step, so that a number in a figure, its caption and a table is the same number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pandas as pd

from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import Level, level_name, name_of, phrase, side_name
from elas_lightning.analysis.statistics import Difference, Estimate, estimate, paired_difference
from elas_lightning.errors import UserError
from elas_lightning.trials_table import STATES

_COMPARING = ("metric_by", "bars", "lr_curve", "heatmap", "differences")


@dataclass(frozen=True)
class Point:
    """The runs at one combination of levels.

    Args:
        levels: level by parameter name, for the parameters that were asked for.
        values: the metric by seed, complete runs only.
        counts: number of runs by state.
        runs: names of the runs, whatever their state.
        rest: levels of the other parameters that vary in the sweep.
        settings: how many settings of those were tried here; the best one is the point.
    """

    levels: Mapping[str, Level]
    values: Mapping[int, float]
    counts: Mapping[str, int]
    runs: tuple[str, ...] = ()
    rest: Mapping[str, Level] = field(default_factory=dict)
    settings: int = 1

    @property
    def estimate(self) -> Estimate | None:
        """Mean and interval over the complete seeds; None when no run completed."""
        return estimate(list(self.values.values()))


def gather(
    results: SweepResults, by: Sequence[str], metric: str, conditions: Mapping[str, Any] | None = None
) -> list[Point]:
    """One point for each combination of levels of ``by`` that was run, in the order of the sweep's file.

    Parameters outside ``by`` that vary too (a learning rate tuned for each method) are settled by taking the
    setting with the best mean objective (see ``best``), and the point says which. Averaging over them would
    mix each method's good settings with its hopeless ones.

    Args:
        by: parameter names; all of them are searched parameters.
        metric: a metric column.
        conditions: a plot's ``filter``.

    Raises:
        UserError: for a parameter or metric that the sweep does not have.
    """
    if metric_of(metric).column not in results.trials:
        raise UserError(f"plots: {metric} is not known of a run as a whole: a `curves` plot shows it over time.")
    trials = results.where(results.trials, conditions)
    others = [name for name in results.names if name not in by and len(trials[name].unique()) > 1]
    points = []
    for levels in product(*(results.parameter(name).levels for name in by)):
        rows = trials
        for name, level in zip(by, levels, strict=True):
            rows = rows[rows[name] == level]
        if not rows.empty:
            chosen = dict(zip(by, levels, strict=True))
            rows, rest, tried = _settle(rows, others, results.objective)
            points.append(Point(chosen, _by_seed(rows, metric), _count(rows), tuple(rows["run"]), rest, tried))
    return points


def _settle(rows: pd.DataFrame, others: list[str], objective: str) -> tuple[pd.DataFrame, dict[str, Level], int]:
    if not others:
        return rows, {}, 1
    settings = []
    for _, group in rows.groupby(others, sort=False):
        levels: dict[str, Level] = {name: group[name].iloc[0] for name in others}
        settings.append((group, levels, Point(levels, _by_seed(group, objective), _count(group))))
    winner = best([point for _, _, point in settings], objective)
    group, levels, _ = next((setting for setting in settings if setting[2] is winner), settings[0])
    return group, levels, len(settings)


def _by_seed(rows: pd.DataFrame, metric: str) -> dict[int, float]:
    # by hand, as the counts: rows are a few, for which a call of pandas takes longer than all of this
    cells = zip(rows["seed"], rows["state"], rows[metric], strict=True)
    good = [(int(seed), float(value)) for seed, state, value in cells if state == "complete" and math.isfinite(value)]
    return dict(sorted(good))


def _count(rows: pd.DataFrame) -> dict[str, int]:
    counts = Counter(rows["state"])
    return {state: counts[state] for state in STATES}


def amount(results: SweepResults, point: Point, column: str) -> float | None:
    """What a point's runs share, such as their number of parameters, or the largest; None where no run has it."""
    values = results.trials.loc[results.trials["run"].isin(point.runs), column].dropna()
    return float(values.max()) if len(values) else None


def difference(a: Point, b: Point, metric: str) -> Difference | None:
    """Paired difference of two points in ``metric``."""
    return paired_difference(a.values, b.values, metric_of(metric).difference)


def best(points: Sequence[Point], metric: str) -> Point | None:
    """The point with the best mean; None when none completed.

    Points with half as many complete seeds as others, or fewer, stand back: one lucky seed would win over
    three ordinary ones. So do points with a diverged run behind those without, as in the study, where such a point
    is the worst: the mean of the other seeds speaks for the lucky ones.
    """
    done = [(point, point.estimate) for point in points]
    known = [(point, found) for point, found in done if found is not None]
    if not known:
        return None
    most = max(found.n for _, found in known)
    enough = [pair for pair in known if 2 * pair[1].n > most]
    whole = [pair for pair in enough if not pair[0].counts.get("diverged")]
    return min(whole or enough, key=lambda pair: metric_of(metric).sign * pair[1].mean)[0]


def best_of(points: Sequence[Point], metric: str) -> tuple[Point, Estimate]:
    """The best of points that have finished runs, and its mean."""
    top = best(points, metric)
    assert top is not None
    assert top.estimate is not None
    return top, top.estimate


def describe(results: SweepResults, levels: Mapping[str, Level]) -> str:
    """``rank 32, method elas``."""
    return ", ".join(phrase(results.parameter(name), level) for name, level in levels.items())


def contrasts(results: SweepResults) -> list[tuple[str, str]]:
    """The parameters whose levels the sweep compares, each with the level that the others are held against.

    These are the series and groups of the requested plots, the named (not numeric) axes of bars and heatmaps, and
    what differences are drawn of; in a sweep of one list of choices it is that one. The baseline is the plot's
    ``baseline`` for its series, group or only axis, else the level listed first.
    """
    found: dict[str, str] = {}
    plots = [plot for plot in results.summary.get("plots") or [] if plot.get("kind") in _COMPARING]
    for plot in sorted(plots, key=lambda plot: "baseline" not in plot):  # who names one decides
        split = plot.get("series") or plot.get("group")
        axes = [plot[key] for key in ("y", "x") if key in plot and plot["kind"] in ("bars", "heatmap", "differences")]
        asked = plot["kind"] == "differences"
        for name in [split, *(axis for axis in axes if asked or not results.parameter(axis).numeric)]:
            if name and name not in found:
                owns_baseline = name == split or (not split and len(axes) == 1)
                found[name] = baseline(results, name, plot if owns_baseline else {})
    if not found and len(results.parameters) == 1 and results.parameters[0].levels:
        only = results.parameters[0]
        if results.summary["search"][only.name].get("kind") == "choices":
            found[only.name] = baseline(results, only.name, {})
    return list(found.items())


def baseline(results: SweepResults, name: str, options: Mapping[str, Any]) -> str:
    """Name of the level that the others of ``name`` are compared with."""
    return _named_level(results, name, options, "baseline", 0)


def focus(results: SweepResults, name: str, options: Mapping[str, Any]) -> str:
    """Name of the level a caption is about: ``focus``, else ELAS (this suite's subject), else the last."""
    names = [side_name(results.parameter(name), level) for level in results.parameter(name).levels]
    ours = [name for name in names if "elas" in name.lower()]
    if "focus" not in options and ours:
        return ours[0]
    return _named_level(results, name, options, "focus", -1)


def _named_level(results: SweepResults, name: str, options: Mapping[str, Any], key: str, position: int) -> str:
    parameter = results.parameter(name)
    levels = {level_name(parameter, level): level for level in parameter.levels}
    if key not in options:
        return side_name(parameter, parameter.levels[position])
    wanted = name_of(name, options[key])
    if wanted not in levels:
        raise UserError(f"plots: {key} {wanted!r} is no value of {name}; use one of {', '.join(levels)}.")
    return side_name(parameter, levels[wanted])
