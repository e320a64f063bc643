"""A whole search at a glance: ``heatmap`` of two parameters, ``parallel`` coordinates, ``importance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric, metric_of
from elas_lightning.analysis.parameters import Level, Parameter, level_name, spoken
from elas_lightning.analysis.plots.base import (
    CannotDraw,
    Options,
    best_clause,
    complete_points,
    losses_clause,
    metric_in,
    picked_clause,
    required,
    rest_clause,
)
from elas_lightning.analysis.points import Point, best_of, describe, difference, gather
from elas_lightning.analysis.wording import compare, listing, number, plural, plus_minus, seeds_phrase, sentence
from elas_lightning.trials_table import STATES

_MOST_TICKS = 9


@style.styled
def heatmap(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """Mean of the metric for each pair of levels of ``x`` and ``y``, written into the cells.

    Args:
        options: ``x``, ``y``; optionally ``metric`` (the objective) and ``filter``.
    """
    x, y = required(options, "x"), required(options, "y")
    metric = metric_in(results, options)
    points = gather(results, [y, x], metric.column, options.get("filter"))
    done = complete_points(points, f"values of {x} and {y}")
    columns, rows = results.parameter(x).levels, results.parameter(y).levels
    cells = {(point.levels[y], point.levels[x]): point for point in points}
    means = np.full((len(rows), len(columns)), np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if (point := cells.get((row, column))) and point.estimate:
                means[i, j] = point.estimate.mean * metric.scale
    figure = style.new_figure(height=1.5 + 0.55 * len(rows))
    ax = figure.add_subplot()
    norm = _norm(means[np.isfinite(means)])
    image = ax.imshow(np.ma.masked_invalid(means), cmap=_colours(metric), norm=norm, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            _cell(ax, i, j, cells.get((row, column)), metric, image)
    for axis, key, levels in (("x", x, columns), ("y", y, rows)):
        names = [level_name(results.parameter(key), level) for level in levels]
        style.level_axis(ax, axis, range(len(levels)), [style.wrap(name, 14) for name in names])
        if axis == "x":
            style.turn_long_names(ax, names)
    ax.grid(visible=False)
    ax.set_xlabel(results.parameter(x).label)
    ax.set_ylabel(results.parameter(y).label)
    bar = figure.colorbar(image, ax=ax, location="top", aspect=40, pad=0.02)
    bar.set_label(f"{metric.label}, {metric.better} is better")
    style.plain_numbers(bar.ax, "x")
    clauses = _ends(results, done, metric)
    if absent := len(rows) * len(columns) - len(cells):
        clauses.append(f"{plural(absent, 'pair')} of values without a run")
    return figure, sentence([*clauses, losses_clause(points), rest_clause(results, points)])


def _ends(results: SweepResults, done: list[Point], metric: Metric) -> list[str]:
    """What the caption says of the best point and of the worst."""
    top, _ = best_of(done, metric.column)
    bottom, worst = max(((p, e) for p in done if (e := p.estimate)), key=lambda pair: metric.sign * pair[1].mean)
    clauses = [best_clause(results, metric, done)]
    if bottom is not top:
        clauses.append(f"worst with {describe(results, bottom.levels)}: {plus_minus(worst, metric.scale)}")
        found = difference(top, bottom, metric.column)
        clauses.append(compare(found, "the best", "the worst"))
        clauses.append(picked_clause(found, "they were picked as the two ends", len(done)))
    return clauses


def _colours(metric: Metric) -> str:
    # One hue from light to dark that also reads in grey; yellow stands for the better end.
    return "cividis_r" if metric.lower_is_better else "cividis"


def _norm(values: np.ndarray) -> Normalize:
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 5:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1e-9 + abs(low) * 1e-3)


def _cell(ax: Axes, i: int, j: int, point: Point | None, metric: Metric, image: ScalarMappable) -> None:
    if point is None or point.estimate is None:
        counts = point.counts if point else {}
        why = next((state for state in STATES if state != "complete" and counts.get(state)), "not run")
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="#f4f4f4", edgecolor="#bbbbbb", hatch="///", lw=0))
        ax.text(j, i, why, ha="center", va="center", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1.5})
        return
    red, green, blue, _ = image.to_rgba(np.asarray(point.estimate.mean * metric.scale))
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45
    text = plus_minus(point.estimate, metric.scale).replace(" ± ", "\n± ")
    if count := point.counts["diverged"]:
        text += f"\n{count} div."
    ax.text(j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black", linespacing=1.05)


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
    norm = _norm(np.array(list(means.values())))
    top, _ = best_of(done, metric.column)
    scales = [_unit_scale(parameter) for parameter in results.parameters]
    ticks = [_ticks(parameter, scale) for parameter, scale in zip(results.parameters, scales, strict=True)]
    lines = max(sum(1 + name.count("\n") for name in found) for found in ticks)
    figure = style.new_figure(width=max(style.WIDTH, 1.15 * (len(names) + 1)), height=max(3.6, 1.0 + 0.15 * lines))
    ax = figure.add_subplot()
    colours = ScalarMappable(norm, _colours(metric))

    def heights_of(point: Point) -> list[float]:
        return [scale[point.levels[name]] for name, scale in zip(names, scales, strict=True)]

    for point in (point for point in points if not point.values):
        ax.plot(range(len(names)), heights_of(point), color=style.GREY, linestyle=(0, (1, 2)), linewidth=1.0, zorder=1)
    # Drawn from worst to best, so that the good ones are not buried.
    for point in sorted(done, key=lambda p: means[id(p)], reverse=metric.lower_is_better):
        heights = [*heights_of(point), float(norm(means[id(point)]))]
        chosen = point is top
        ax.plot(
            range(len(heights)),
            heights,
            color="#D55E00" if chosen else colours.to_rgba(np.asarray(means[id(point)])),
            linewidth=3.0 if chosen else 1.2,
            marker="o" if chosen else None,
            zorder=4 if chosen else 2,
        )
    labels = [*(parameter.label for parameter in results.parameters), f"{metric.label} ({metric.better} is better)"]
    _uprights(ax, [style.wrap(label, 13) for label in labels], [*ticks, _three_marks(norm)])
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
    return {number(value): float(norm(value)) for value in (low, middle, high)}


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


def _uprights(ax: Axes, labels: Sequence[str], ticks: Sequence[Mapping[str, float]]) -> None:
    """An axis from 0 to 1 for each label, side by side, in place of the figure's own."""
    for i, found in enumerate(ticks):
        _upright(ax, i, found)
    style.level_axis(ax, "x", range(len(labels)), labels)
    ax.set_xlim(-0.35, len(labels) - 1 + 0.55)
    ax.set_ylim(-0.06, 1.06)
    ax.yaxis.set_visible(False)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(axis="x", length=0)


def _upright(ax: Axes, i: int, ticks: Mapping[str, float]) -> None:
    ax.plot([i, i], [0, 1], color="black", linewidth=0.9, zorder=3)
    for name, height in ticks.items():
        ax.plot([i - 0.025, i + 0.025], [height, height], color="black", linewidth=0.9, zorder=5)
        ax.text(
            i + 0.06,
            height,
            name,
            fontsize=8.5,
            va="center",
            ha="left",
            zorder=6,
            linespacing=0.95,
            bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.8},
        )


@style.styled
def importance(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """How much each parameter decides whether a point is among the best quarter (PED-ANOVA), as bars from zero."""
    found = results.summary.get("importances")
    if not found:
        raise CannotDraw("the study estimated no importances (it needs ten finished points)")
    ordered = sorted(
        ((name, found[name]) for name in results.names if name in found), key=lambda item: item[1], reverse=True
    )
    known = {parameter.name: parameter for parameter in results.parameters}
    figure = style.new_figure(height=1.0 + 0.42 * len(ordered))
    ax = figure.add_subplot()
    shares = [100.0 * float(value) for _, value in ordered]
    ax.barh(range(len(shares)), shares, color=style.look(0).color, height=0.62)
    for i, share in enumerate(shares):
        ax.text(share, i, f" {share:.0f} %", va="center", fontsize=9)
    style.level_axis(ax, "y", range(len(shares)), [style.wrap(known[name].label, 18) for name, _ in ordered])
    ax.set_ylim(len(shares) - 0.5, -0.5)
    ax.set_xlim(0, max(*shares, 1.0) * 1.15)
    style.plain_numbers(ax, "x")
    ax.grid(axis="y", visible=False)
    metric = metric_of(results.objective)
    ax.set_xlabel("Share in deciding the best quarter (%)")  # by what stands in the caption
    said = listing([f"{spoken(known[name])} {share:.0f} %" for (name, _), share in zip(ordered, shares, strict=True)])
    count = sum(bool(point.values) for point in gather(results, results.names, metric.column))
    return figure, sentence(
        [
            f"what decides whether a point is in the best quarter by {metric.noun}: {said}",
            f"an estimate (PED-ANOVA) from {plural(count, 'point')} in the searched ranges, without an interval",
        ]
    )
