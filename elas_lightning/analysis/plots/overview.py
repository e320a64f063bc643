"""A whole search at a glance: ``heatmap`` of two parameters, ``importance`` of each."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric, metric_of
from elas_lightning.analysis.parameters import level_name, spoken
from elas_lightning.analysis.plots.base import (
    CannotDraw,
    Options,
    best_clause,
    colours_of,
    complete_points,
    losses_clause,
    metric_in,
    norm_of,
    picked_clause,
    required,
    rest_clause,
)
from elas_lightning.analysis.points import Point, best_of, describe, difference, gather
from elas_lightning.analysis.wording import compare, listing, plural, plus_minus, sentence
from elas_lightning.trials_table import STATES

# A mean with its interval, and a line of a level's name, in inches.
_CELL_WIDTH, _CELL_HEIGHT, _NAME_LINE = 0.6, 0.55, 0.15


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
    names = {key: [level_name(p, level) for level in p.levels] for key in (x, y) if (p := results.parameter(key))}
    tallest = max(style.wrap(name, 14).count("\n") + 1 for name in names[y])
    figure = style.new_figure(
        width=max(style.WIDTH, 1.2 + _CELL_WIDTH * len(columns)),
        height=1.5 + max(_CELL_HEIGHT, _NAME_LINE * (tallest + 0.5)) * len(rows),
    )
    ax = figure.add_subplot()
    norm = norm_of(means[np.isfinite(means)])
    image = ax.imshow(np.ma.masked_invalid(means), cmap=colours_of(metric), norm=norm, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            _cell(ax, i, j, cells.get((row, column)), metric, image)
    for axis, key in (("x", x), ("y", y)):
        style.level_axis(ax, axis, range(len(names[key])), [style.wrap(name, 14) for name in names[key]])
    style.turn_long_names(ax, names[x])
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
