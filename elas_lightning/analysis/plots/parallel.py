"""Every point of a search as a line across its parameters: ``parallel`` coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric
from elas_lightning.analysis.parameters import Level, Parameter, level_name
from elas_lightning.analysis.plots.base import (
    CannotDraw,
    Options,
    colours_of,
    complete_points,
    losses_clause,
    metric_in,
    norm_of,
)
from elas_lightning.analysis.points import Point, best_of, describe, gather
from elas_lightning.analysis.wording import number, plural, plus_minus, seeds_phrase, sentence

_MOST_TICKS = 9
# In inches: a letter of a tick's name, where the name begins behind its axis, the way from one axis' names to the next
# axis, the least that two labels below need, and what is left on both sides.
_LETTER, _BEFORE_NAME, _WAY, _LABEL, _MARGIN = 0.07, 0.06, 0.8, 1.05, 0.45


class _Upright(NamedTuple):
    """An axis of its own.

    Attributes:
        label: What stands below.
        ticks: Names and their heights, 0 to 1.
    """

    label: str
    ticks: Mapping[str, float]

    @property
    def names_width(self) -> float:
        """The inches behind it that its names take."""
        letters = max(len(line) for name in self.ticks for line in name.splitlines())
        return 2 * _BEFORE_NAME + _LETTER * letters


@style.styled
def parallel(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """Each point as a line across all searched parameters to the metric; the best one stands out.

    Args:
        options: optionally ``metric`` (the objective) and ``filter``.
    """
    metric = metric_in(results, options)
    names = [parameter.name for parameter in results.parameters]
    if not names:
        raise CannotDraw("the sweep searched no parameter")
    points = gather(results, names, metric.column, options.get("filter"))
    done = complete_points(points, "all searched parameters")
    if len(done) < 2:
        raise CannotDraw("a comparison of whole settings needs at least two that have finished")
    means = {id(p): e.mean * metric.scale for p in done if (e := p.estimate)}
    norm = norm_of(np.array(list(means.values())))
    top, _ = best_of(done, metric.column)
    scales = [_unit_scale(parameter) for parameter in results.parameters]
    uprights = [
        *(_Upright(p.label, _ticks(p, scale)) for p, scale in zip(results.parameters, scales, strict=True)),
        _Upright(f"{metric.label} ({metric.better} is better)", _three_marks(norm)),
    ]
    places = _places(uprights)
    ax = _axes(uprights, places)
    colours = ScalarMappable(norm, colours_of(metric))
    # Level behind each axis, as far as its names reach: these hide no crossing then, and no line's way.
    xs = [x for place, upright in zip(places, uprights, strict=True) for x in (place, place + upright.names_width)]

    def heights_of(point: Point) -> list[float]:
        return [h for name, scale in zip(names, scales, strict=True) for h in (scale[point.levels[name]],) * 2]

    for point in (point for point in points if not point.values):
        heights = heights_of(point)
        ax.plot(xs[: len(heights)], heights, color=style.GREY, linestyle=(0, (1, 2)), linewidth=1.0, zorder=1)
    # Drawn from worst to best, so that the good ones are not buried.
    for point in sorted(done, key=lambda p: means[id(p)], reverse=metric.lower_is_better):
        chosen = point is top
        ax.plot(
            xs[:-1],
            [*heights_of(point), float(norm(means[id(point)]))],
            color="#D55E00" if chosen else colours.to_rgba(np.asarray(means[id(point)])),
            linewidth=3.0 if chosen else 1.2,
            marker="o" if chosen else None,
            markevery=2,
            zorder=4 if chosen else 2,
        )
    figure = ax.get_figure(root=True)
    assert figure is not None  # an axes that is drawn on has a figure
    return figure, _parallel_caption(results, metric, points, done)


def _parallel_caption(results: SweepResults, metric: Metric, points: list[Point], done: list[Point]) -> str:
    top, estimate = best_of(done, metric.column)
    clauses = [
        f"the best of {plural(len(done), 'finished point')} (thick orange line) is {describe(results, top.levels)}: "
        f"{metric.noun} {plus_minus(estimate, metric.scale)} ({seeds_phrase(estimate.n)})"
    ]
    if lost := sum(not point.values for point in points):
        which = "the dotted grey line is" if lost == 1 else "dotted grey lines are"
        clauses.append(f"{which} {plural(lost, 'point')} without a finished run")
    return sentence([*clauses, losses_clause(points)])


def _three_marks(norm: Normalize) -> dict[str, float]:
    low, high = norm.vmin or 0.0, norm.vmax or 0.0
    middle = (low * high) ** 0.5 if isinstance(norm, LogNorm) else (low + high) / 2
    marks = (low, middle, high)
    # as many digits as tell them apart: two perplexities of a search may have the first five in common
    digits = next((d for d in range(3, 10) if len({number(value, d) for value in marks}) == len(marks)), 10)
    return {number(value, digits): float(norm(value)) for value in marks}


def _unit_scale(parameter: Parameter) -> dict[Level, float]:
    levels = parameter.levels
    if not parameter.numeric:
        return {level: (i + 0.5) / len(levels) for i, level in enumerate(levels)}
    numbers = np.array([float(level) for level in levels])
    # Powers of two (ranks) and learning rates crowd at the low end of a linear scale.
    if numbers.min() > 0 and (parameter.log or numbers.max() / numbers.min() >= 8):
        numbers = np.log(numbers)
    span = numbers.max() - numbers.min()
    places = (numbers - numbers.min()) / span if span else np.full(len(levels), 0.5)
    return dict(zip(levels, map(float, places), strict=True))


def _ticks(parameter: Parameter, scale: Mapping[Level, float]) -> dict[str, float]:
    levels = list(parameter.levels)
    if parameter.numeric and len(levels) > _MOST_TICKS:
        # A continuous search: its ends and the tried values nearest to the quarters.
        levels = [min(levels, key=lambda v: abs(scale[v] - q)) for q in (0, 0.25, 0.5, 0.75, 1)]
        return {style.wrap(number(float(level), 2), 11): scale[level] for level in levels}
    return {style.wrap(level_name(parameter, level), 11): scale[level] for level in levels}


def _places(uprights: Sequence[_Upright]) -> list[float]:
    """Where the axes stand, in inches from the first."""
    places = [0.0]
    for upright, _ in pairwise(uprights):
        places.append(places[-1] + max(upright.names_width + _WAY, _LABEL))
    # where there are few, they share what a figure has
    spare = style.WIDTH - 2 * _MARGIN - uprights[-1].names_width - places[-1]
    return [place + max(spare, 0.0) * i / (len(places) - 1) for i, place in enumerate(places)]


def _axes(uprights: Sequence[_Upright], places: Sequence[float]) -> Axes:
    """A figure whose x is in inches, with the axes, their names and labels."""
    lines = max(sum(1 + name.count("\n") for name in upright.ticks) for upright in uprights)
    ends = (-_MARGIN, places[-1] + uprights[-1].names_width + _MARGIN)
    figure = style.new_figure(width=ends[1] - ends[0], height=max(3.6, 1.0 + 0.15 * lines))
    ax = figure.add_subplot()
    for place, upright in zip(places, uprights, strict=True):
        ax.plot([place, place], [0, 1], color="black", linewidth=0.9, zorder=3)
        for name, height in upright.ticks.items():
            ax.plot([place - 0.03, place + 0.03], [height, height], color="black", linewidth=0.9, zorder=5)
            box = {"fc": "white", "ec": "none", "pad": 0.8}
            how: dict[str, Any] = {"fontsize": 8.5, "va": "center", "ha": "left", "linespacing": 0.95, "zorder": 6}
            ax.text(place + _BEFORE_NAME, height, name, bbox=box, **how)
    style.level_axis(ax, "x", places, [style.wrap(upright.label, 13) for upright in uprights])
    ax.set_xlim(*ends)
    ax.set_ylim(-0.06, 1.06)
    ax.yaxis.set_visible(False)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(axis="x", length=0)
    return ax
