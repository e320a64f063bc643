"""A metric by categories: ``bars``.

Where a metric has a meaningful zero (speed, memory) these are bars from zero. Perplexity and loss have none
within reach; a bar cut off at 140 would exaggerate, so they are drawn as means with intervals instead.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric
from elas_lightning.analysis.parameters import Level, Parameter, level_name, side_name
from elas_lightning.analysis.plots.base import (
    Options,
    best_clause,
    complete_points,
    cut_clause,
    draw_seeds,
    losses_clause,
    metric_in,
    picked_clause,
    required,
    rest_clause,
    shown_values,
    value_limits,
)
from elas_lightning.analysis.points import Point, baseline, best, difference, focus, gather
from elas_lightning.analysis.statistics import Difference
from elas_lightning.analysis.wording import compare, compare_many, sentence


@style.styled
def bars(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """The metric by the levels of ``x`` (rows, so that long names stay readable), split by ``group``.

    Args:
        options: ``x``; optionally ``group``, ``metric`` (the objective), ``baseline``, ``focus``, ``filter``.
    """
    x, group = required(options, "x"), options.get("group")
    metric = metric_in(results, options)
    points = gather(results, [x, group] if group else [x], metric.column, options.get("filter"))
    done = complete_points(points, f"a value of {x}")
    rows = _levels_of(points, results.parameter(x))
    groups = _levels_of(points, results.parameter(group)) if group else [""]
    height = 0.8 / len(groups)
    figure = style.new_figure(height=1.1 + 0.27 * len(rows) * max(len(groups), 1.6))
    ax = figure.add_subplot()
    cut = _limit_values(ax, metric, done)
    for i, level in enumerate(groups):
        mine = [point for point in points if not group or point.levels[group] == level]
        middle = (i - (len(groups) - 1) / 2) * height
        places = [(rows.index(point.levels[x]) + middle, point) for point in mine]
        name = level_name(results.parameter(group), level) if group else None
        _draw_group(ax, metric, places, style.look(i), name, height)
    names = [style.wrap(level_name(results.parameter(x), level), 20) for level in rows]
    style.level_axis(ax, "y", range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.5, -0.5)  # first level on top, as it is read
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(metric.label)
    ax.set_ylabel(results.parameter(x).label)
    if group:
        names = [level_name(results.parameter(group), level) for level in groups]
        figure.legend(
            loc="outside upper right",
            ncols=style.legend_columns(names),
            frameon=False,
            borderaxespad=0.0,
            title=results.parameter(group).label,
            title_fontsize=9,
        )
    clauses = [best_clause(results, metric, done)]
    if group and len(groups) > 1:
        clauses.append(_by_group(results, options, metric, done))
    elif len(done) > 1:
        clauses.append(_against_first(results, options, metric, done))
    return figure, sentence([*clauses, cut_clause(cut), losses_clause(points), rest_clause(results, points)])


def _limit_values(ax: Axes, metric: Metric, done: list[Point]) -> bool:
    """Make room for values and intervals, from zero for an amount; whether an interval is cut off."""
    values, spans = shown_values(done, metric)
    if not metric.from_zero:
        return value_limits(ax, "x", values, spans)
    ax.set_xlim(0, 1.1 * max(*values, *(high for _, high in spans)))
    style.plain_numbers(ax, "x")
    return False


def _levels_of(points: list[Point], parameter: Parameter) -> list[Level]:
    found = {point.levels[parameter.name] for point in points}
    return [level for level in parameter.levels if level in found]


def _draw_group(
    ax: Axes, metric: Metric, places: list[tuple[float, Point]], look: style.Look, name: str | None, height: float
) -> None:
    """Means, intervals, seeds and losses of one group, each point at its place from the top."""
    known = [(place, point, estimate) for place, point in places if (estimate := point.estimate)]
    rows, means = [place for place, *_ in known], [e.mean * metric.scale for *_, e in known]
    if metric.from_zero:
        ax.barh(rows, means, height=0.85 * height, color=look.color, alpha=0.3, zorder=1)
    reach = [(e.half_width or 0.0) * metric.scale for *_, e in known]
    ax.errorbar(means, rows, xerr=reach, color=look.color, marker=look.marker, linestyle="none", label=name, zorder=3)
    # Below the interval, where its bar does not hide them.
    seeds = [
        (value * metric.scale, place + 0.3 * height)
        for place, point, estimate in known
        if estimate.n > 1
        for value in point.values.values()
    ]
    draw_seeds(ax, seeds, look)
    for place, point in places:
        if count := point.counts["diverged"]:
            edge = ax.get_yaxis_transform()
            style.cross(ax, (1.0, place), edge, look)
            text = "diverged" if count == 1 else f"{count} diverged"
            style.note(ax, text, (1.0, place), edge, (7, 0), va="center")


def _by_group(results: SweepResults, options: Options, metric: Metric, done: list[Point]) -> str:
    """The focus group against the baseline group, for each row that has both."""
    x, group = str(options["x"]), str(options["group"])
    ours, theirs = focus(results, group, options), baseline(results, group, options)
    pairs: dict[str, Difference] = {}
    for level in results.parameter(x).levels:
        row = {side_name(results.parameter(group), p.levels[group]): p for p in done if p.levels[x] == level}
        if ours != theirs and ours in row and theirs in row:
            found = difference(row[ours], row[theirs], metric.column)
            if found is not None:
                pairs[level_name(results.parameter(x), level)] = found
    return compare_many(pairs, ours, theirs)


def _against_first(results: SweepResults, options: Options, metric: Metric, done: list[Point]) -> str:
    """The best row against the baseline row, or where the baseline is the best, the focus row against it."""
    x = str(options["x"])
    rows = {side_name(results.parameter(x), point.levels[x]): point for point in done}
    top = best(done, metric.column)
    ours = next(name for name, point in rows.items() if point is top)
    theirs = baseline(results, x, options)
    picked = ours != theirs
    if not picked:
        ours = focus(results, x, options)
    if ours == theirs or ours not in rows or theirs not in rows:
        return ""
    found = difference(rows[ours], rows[theirs], metric.column)
    clause = picked_clause(found, f"{ours} was picked as the best", len(rows)) if picked else ""
    return "; ".join(filter(None, [compare(found, ours, theirs), clause]))
