"""A metric against one searched parameter: ``metric_by`` and its special case ``lr_curve``."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric
from elas_lightning.analysis.parameters import phrase, side_name, spoken
from elas_lightning.analysis.plots.base import (
    Options,
    Scale,
    complete_points,
    cut_clause,
    draw_seeds,
    losses_clause,
    metric_in,
    note_diverged,
    required,
    rest_clause,
    shown_values,
    value_limits,
)
from elas_lightning.analysis.points import Point, baseline, best, difference, focus, gather
from elas_lightning.analysis.statistics import paired_difference
from elas_lightning.analysis.wording import compare, listing, plus_minus, seeds_phrase, sentence

# Hundredths of the axis from the first to the last of several series at one level.
_REACH = 8.0


@style.styled
def metric_by(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """Mean and 95 % interval over seeds against ``x``, one line for each level of ``series``.

    Args:
        options: ``x``; optionally ``series``, ``metric`` (the objective), ``log_x``, ``baseline``, ``focus``,
            ``filter``.
    """
    figure, metric, lines, cut = _draw(results, options, bool(options.get("log_x", False)))
    points = [point for _, line in lines for point in line]
    caption = [_trend(results, options, metric, _focused(results, options, lines)), _against(results, options, lines)]
    return figure, sentence([*caption, cut_clause(cut), losses_clause(points), rest_clause(results, points)])


@style.styled
def lr_curve(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """The metric against a learning rate on a log axis, diverged runs marked at the top edge.

    The caption names the best value of each series and whether it lies at an end of the range, where the true
    optimum may be outside.
    """
    figure, metric, lines, cut = _draw(results, {"x": "lr", **options}, True)
    x = str(options.get("x", "lr"))
    winners: list[str] = []
    edges: list[str] = []
    seeds: list[int] = []
    for name, line in lines:
        winner = best(line, metric.column)
        if winner is None or winner.estimate is None:
            continue
        whose = f" for {name}" if name else ""
        at = phrase(results.parameter(x), winner.levels[x])
        # "peak learning rate" is said once, with the first series.
        at = at if not winners else at.removeprefix(spoken(results.parameter(x))).strip()
        winners.append(f"{at}{whose} ({plus_minus(winner.estimate, metric.scale)})")
        seeds.append(winner.estimate.n)
        tried = [point.levels[x] for point in line]
        if len(tried) > 1 and winner.levels[x] in (tried[0], tried[-1]):
            edges.append(name or "it")
    lead = f"{metric.noun} is best at {listing(winners)} ({seeds_phrase(*seeds)})"
    clauses = [lead]
    if edges:
        clauses.append(f"for {listing(edges)} that is an end of the tried range, so the optimum may lie outside")
    points = [point for _, line in lines for point in line]
    clauses += [cut_clause(cut), losses_clause(points), rest_clause(results, points)]
    return figure, sentence(clauses)


def _draw(
    results: SweepResults, options: Options, log_x: bool
) -> tuple[Figure, Metric, list[tuple[str, list[Point]]], bool]:
    x, series = required(options, "x"), options.get("series")
    metric = metric_in(results, options)
    points = gather(results, [x, series] if series else [x], metric.column, options.get("filter"))
    done = complete_points(points, f"a value of {x}")
    figure = style.new_figure()
    ax = figure.add_subplot()
    scale = Scale(results.parameter(x), [point.levels[x] for point in points], log_x)
    scale.apply(ax)
    cut = value_limits(ax, "y", *shown_values(done, metric))
    ax.set_ylabel(metric.label)
    lines = _lines(results, points, series)
    ends = []
    # All series of a level stay beside it, within the margin of the axis.
    step = min(2.6, _REACH / max(len(lines) - 1, 1))
    for i, (name, line) in enumerate(lines):
        shift = step * (i - (len(lines) - 1) / 2)
        _series(ax, metric, scale, x, line, style.look(i), shift)
        if last := [point.estimate for point in line if point.estimate]:
            look = style.look(i)._replace(linestyle="none") if scale.crowded else style.look(i)
            ends.append((last[-1].mean * metric.scale, name, look))
    if dead := [count for point in points if (count := point.counts["diverged"])]:
        note_diverged(ax, numbered=max(dead) > 1)
    if series:
        style.label_ends(ax, ends, results.parameter(str(series)).label)
    return figure, metric, lines, cut


def _lines(results: SweepResults, points: Sequence[Point], series: str | None) -> list[tuple[str, list[Point]]]:
    if series is None:
        return [("", list(points))]
    parameter = results.parameter(series)
    lines = [
        (side_name(parameter, level), [point for point in points if point.levels[series] == level])
        for level in parameter.levels
    ]
    return [(name, line) for name, line in lines if line]


def _series(
    ax: Axes, metric: Metric, scale: Scale, x: str, line: Sequence[Point], look: style.Look, shift: float
) -> None:
    known = [(scale.place(point.levels[x], shift), point, e) for point in line if (e := point.estimate)]
    ax.errorbar(
        [place for place, _, _ in known],
        [estimate.mean * metric.scale for _, _, estimate in known],
        yerr=[(estimate.half_width or 0.0) * metric.scale for _, _, estimate in known],
        color=look.color,
        marker=look.marker,
        # Values drawn by a sampler also differ in everything else: a line would suggest a course.
        linestyle="none" if scale.crowded else look.linestyle,
        zorder=3,
    )
    # Beside the interval, where its bar does not hide them.
    seeds = [
        (scale.place(point.levels[x], shift + 1.1), value * metric.scale)
        for _, point, estimate in known
        if estimate.n > 1
        for value in point.values.values()
    ]
    draw_seeds(ax, seeds, look)
    for point in line:
        if count := point.counts["diverged"]:
            # All crosses share the top edge, so they need more room between series than the means.
            _mark_diverged(ax, scale.place(point.levels[x], 2.0 * shift), count, look)


def _mark_diverged(ax: Axes, place: float, count: int, look: style.Look) -> None:
    edge = ax.get_xaxis_transform()
    style.cross(ax, (place, 1.0), edge, look)
    if count > 1:
        style.note(ax, str(count), (place, 1.0), edge, (0, 5), ha="center", va="bottom")


def _focused(
    results: SweepResults, options: Options, lines: Sequence[tuple[str, list[Point]]]
) -> tuple[str, list[Point]]:
    if not options.get("series"):
        return lines[0]
    wanted = focus(results, str(options["series"]), options)
    # The focus may have no finished run yet in an unfinished sweep.
    finished = [line for line in lines if any(point.values for point in line[1])]
    return next((line for line in finished if line[0] == wanted), finished[-1])


def _trend(results: SweepResults, options: Options, metric: Metric, line: tuple[str, list[Point]]) -> str:
    """How the metric moves along x for one series: from its first to its last level, and its best."""
    name, points = line
    x = str(options["x"])
    noun = metric.noun + (f" of {name}" if name else "")

    def at(point: Point) -> str:
        return phrase(results.parameter(x), point.levels[x])

    known = [(point, point.estimate) for point in points]
    done = [(point, estimate) for point, estimate in known if estimate is not None]
    (first, start), (last, end) = done[0], done[-1]
    start_text = f"{plus_minus(start, metric.scale)} at {at(first)}"
    how = f" ({seeds_phrase(start.n, end.n)})"
    if len(done) == 1:
        return f"{noun} is {start_text}{how}, the only finished value"
    end_text = f"{plus_minus(end, metric.scale)} at {at(last)}"
    winner = best([point for point, _ in done], metric.column)
    if winner is not None and winner is not first and winner is not last and winner.estimate is not None:
        return (
            f"{noun} is best at {at(winner)} ({plus_minus(winner.estimate, metric.scale)}), against "
            f"{start_text} and {end_text}{how}"
        )
    change = difference(last, first, metric.column)
    # a change that the two means' own intervals hide is told by the pairs
    overlap = max(start.low, end.low) <= min(start.high, end.high)
    if change is not None and change.n > 1 and (overlap or not change.found):
        return f"{noun} is {start_text} and {end_text}{how}; {compare(change, at(last), at(first))}"
    verb = "falls" if end.mean < start.mean else "rises"
    return f"{noun} {verb} from {start_text} to {end_text}{how}"


def _against(results: SweepResults, options: Options, lines: Sequence[tuple[str, list[Point]]]) -> str:
    """The focus series against the baseline at the last x where both have finished runs."""
    series, x = options.get("series"), str(options["x"])
    if not series or len(lines) < 2:
        return ""
    metric = metric_in(results, options)
    by_name = dict(lines)
    ours, theirs = focus(results, series, options), baseline(results, series, options)
    if ours == theirs or ours not in by_name or theirs not in by_name:
        return ""
    twins = {point.levels[x]: point for point in by_name[theirs] if point.values}
    shared = [point for point in by_name[ours] if point.values and point.levels[x] in twins]
    if not shared:
        return f"{ours} and {theirs} have no finished run at the same {spoken(results.parameter(x))}"
    point = shared[-1]
    where = f" at {phrase(results.parameter(x), point.levels[x])}"
    found = paired_difference(point.values, twins[point.levels[x]].values, metric.difference)
    return compare(found, ours, theirs, where)
