"""Quality against what it costs: points, and the front of those that nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric, metric_of
from elas_lightning.analysis.parameters import side_name
from elas_lightning.analysis.plots.base import (
    CannotDraw,
    Options,
    cut_clause,
    losses_clause,
    value_limits,
)
from elas_lightning.analysis.points import gather
from elas_lightning.analysis.statistics import Estimate
from elas_lightning.analysis.wording import listing, sentence


def front(*columns: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats: none is as good in all columns (lower is better) and better in one."""
    points = list(zip(*columns, strict=True))
    return [
        i
        for i, point in enumerate(points)
        if not any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in points
        )
    ]


@style.styled
def pareto(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """Mean of the metric against a cost, with 95 % intervals of both; the front as a line, the others grey.

    Args:
        options: ``x``, the cost (``flops_per_token``); optionally ``metric`` (the objective), ``filter`` and
            ``series``, the one parameter whose levels are the points, else each point of the search is one.

    Raises:
        CannotDraw: Fewer than two points have both, or all of them have a diverged run.
    """
    names_of = [str(options["series"])] if "series" in options else results.names
    metric = metric_of(str(options.get("metric", results.objective)))
    cost = metric_of(str(options.get("x", "flops_per_token")))
    parameters = [results.parameter(name) for name in names_of]
    points = gather(results, names_of, metric.column, options.get("filter"))
    prices = gather(results, names_of, cost.column, options.get("filter"))
    drawn = [
        (point, value, price)
        for point, other in zip(points, prices, strict=True)
        if (value := point.estimate) and (price := other.estimate)
    ]
    if len(drawn) < 2:
        raise CannotDraw(f"fewer than two points have both {metric.noun} and {cost.noun}")
    signs = [1 if one.lower_is_better else -1 for one in (cost, metric)]
    # as in the study, where a diverged seed makes its point the worst: the others' mean would speak for the lucky ones
    whole_points = [i for i, (point, _, _) in enumerate(drawn) if not point.counts["diverged"]]
    if not whole_points:
        raise CannotDraw("every point has a diverged run")
    costs = [signs[0] * drawn[i][2].mean for i in whole_points]
    best = [whole_points[i] for i in front(costs, [signs[1] * drawn[i][1].mean for i in whole_points])]
    figure = style.new_figure(width=6.2)
    ax = figure.add_subplot()
    names = [", ".join(side_name(p, point.levels[p.name]) for p in parameters) for point, _, _ in drawn]
    ends = []
    for i, (point, value, price) in enumerate(drawn):
        look = style.look(parameters[0].levels.index(point.levels[parameters[0].name]))
        look = look._replace(color=look.color if i in best else "#b0b0b0", linestyle="none")
        ax.errorbar(
            price.mean * cost.scale,
            value.mean * metric.scale,
            xerr=(price.half_width or 0) * cost.scale or None,
            yerr=(value.half_width or 0) * metric.scale or None,
            color=look.color,
            marker=look.marker,
            # hollow and larger, so that a beaten point is seen behind the one that beats it by a hair
            markersize=6 if i in best else 11,
            fillstyle="full" if i in best else "none",
            elinewidth=1.1,
            linestyle="none",
            zorder=4 if i in best else 3,
        )
        ends.append((value.mean * metric.scale, names[i], look))
    ax.set_xlabel(f"{cost.label}, {_better(cost)} is better")
    ax.set_ylabel(f"{metric.label}, {_better(metric)} is better")
    cut = [
        _fit_axis(ax, "x", [price for _, _, price in drawn], cost.scale),
        _fit_axis(ax, "y", [value for _, value, _ in drawn], metric.scale),
    ]
    line = sorted(best, key=lambda i: signs[0] * drawn[i][2].mean)
    # from one worse edge to the other, so that what lies beyond it is seen to be beaten
    corners = [(drawn[i][2].mean * cost.scale, drawn[i][1].mean * metric.scale) for i in line]
    worst_x, worst_y = ax.get_xlim()[signs[0] > 0], ax.get_ylim()[signs[1] > 0]
    whole = [(corners[0][0], worst_y), *corners, (worst_x, corners[-1][1])]
    ax.plot(*zip(*whole, strict=True), color=style.GREY, linewidth=1.0, linestyle="--", drawstyle="steps-post",
            zorder=2)  # fmt: skip
    style.label_ends(ax, ends, "In colour: on the front" if len(best) < len(drawn) else "All on the front")
    beaten = [names[i] for i in whole_points if i not in best]
    diverged = [name for i, name in enumerate(names) if i not in whole_points]
    clauses = [
        f"on the front, the dashed line (no other is as good in both {metric.noun} and {cost.noun} and better in one): "
        f"{listing([names[i] for i in line])}"
    ]
    if beaten:
        where = f"{'above' if signs[1] > 0 else 'below'} or to the {'right' if signs[0] > 0 else 'left'}"
        clauses.append(f"grey, {where} of it: {listing(beaten)}")
    if diverged:
        clauses.append(
            f"grey, since not all of their runs went to the end without diverging: {listing(diverged)}"
        )
    clauses.append("means over seeds with 95 % intervals; which of two close points is better is not settled")
    return figure, sentence([*clauses, cut_clause(any(cut)), losses_clause(points)])


def _fit_axis(ax: Axes, which: str, found: Sequence[Estimate], scale: float) -> bool:
    """Scale and limits of an axis that shows estimates; whether an interval runs off its edge."""
    intervals = [(one.low * scale, one.high * scale) for one in found if one.half_width]
    return value_limits(ax, which, [one.mean * scale for one in found], intervals)


def _better(metric: Metric) -> str:
    return "lower" if metric.lower_is_better else "higher"
