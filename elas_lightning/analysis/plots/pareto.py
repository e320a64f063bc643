"""Quality against what it costs: points, and the front of those that nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric, metric_of
from elas_lightning.analysis.parameters import side_name
from elas_lightning.analysis.plots.base import CannotDraw, Options, cut_clause, losses_clause, metric_in, value_limits
from elas_lightning.analysis.points import Point, gather
from elas_lightning.analysis.statistics import Estimate
from elas_lightning.analysis.wording import listing, seeds_phrase, sentence


def front(*columns: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats: none is as good in all columns (lower is better) and better in one."""
    points = list(zip(*columns, strict=True))
    return [
        i
        for i, point in enumerate(points)
        if not any(other != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in points)
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
    keys = [str(options["series"])] if "series" in options else results.names
    metric = metric_in(results, options)
    cost = metric_of(str(options.get("x", "flops_per_token")))
    parameters = [results.parameter(key) for key in keys]
    points = gather(results, keys, metric.column, options.get("filter"))
    prices = gather(results, keys, cost.column, options.get("filter"))
    drawn = [
        _Drawn(point, ", ".join(side_name(p, point.levels[p.name]) for p in parameters), value, price)
        for point, other in zip(points, prices, strict=True)
        if (value := point.estimate) and (price := other.estimate)
    ]
    if len(drawn) < 2:
        raise CannotDraw(f"fewer than two points have both {metric.noun} and {cost.noun}")
    best = _best(drawn, cost, metric)
    figure = style.new_figure(width=6.2)
    ax = figure.add_subplot()
    ends = []
    for one in drawn:
        index = parameters[0].levels.index(one.point.levels[parameters[0].name])
        look = style.look(index)
        look = look._replace(color=look.color if one in best else style.grey(index), linestyle="none")
        _dot(ax, one, look, cost, metric, one in best)
        ends.append((one.value.mean * metric.scale, one.name, look))
    ax.set_xlabel(f"{cost.label}, {cost.better} is better")
    ax.set_ylabel(f"{metric.label},\n{metric.better} is better")
    cut = [
        _fit_axis(ax, "x", [one.price for one in drawn], cost.scale),
        _fit_axis(ax, "y", [one.value for one in drawn], metric.scale),
    ]
    _front_line(ax, best, cost, metric)
    style.label_ends(ax, ends, "In colour: on the front" if len(best) < len(drawn) else "All on the front")
    clauses = _clauses(drawn, best, cost, metric)
    return figure, sentence([*clauses, cut_clause(any(cut)), losses_clause(points)])


@dataclass(frozen=True, eq=False)
class _Drawn:
    point: Point
    name: str
    value: Estimate
    price: Estimate

    @property
    def whole(self) -> bool:
        # as in the study, a diverged seed makes its point the worst: the others' mean would speak for the lucky ones
        return not self.point.counts["diverged"]


def _best(drawn: list[_Drawn], cost: Metric, metric: Metric) -> list[_Drawn]:
    """Those on the front, from the best cost to the best metric."""
    whole = [one for one in drawn if one.whole]
    if not whole:
        raise CannotDraw("every point has a diverged run")
    costs = [cost.sign * one.price.mean for one in whole]
    kept = front(costs, [metric.sign * one.value.mean for one in whole])
    return [whole[i] for i in sorted(kept, key=costs.__getitem__)]


def _dot(ax: Axes, one: _Drawn, look: style.Look, cost: Metric, metric: Metric, on_front: bool) -> None:
    ax.errorbar(
        one.price.mean * cost.scale,
        one.value.mean * metric.scale,
        xerr=(one.price.half_width or 0) * cost.scale or None,
        yerr=(one.value.half_width or 0) * metric.scale or None,
        color=look.color,
        marker=look.marker,
        # hollow and larger, so that a beaten point is seen behind the one that beats it by a hair
        markersize=6 if on_front else 11,
        fillstyle="full" if on_front else "none",
        elinewidth=1.1,
        linestyle="none",
        zorder=4 if on_front else 3,
    )


def _front_line(ax: Axes, best: list[_Drawn], cost: Metric, metric: Metric) -> None:
    """From one worse edge to the other, so that what lies beyond it is seen to be beaten."""
    corners = [(one.price.mean * cost.scale, one.value.mean * metric.scale) for one in best]
    worst_x, worst_y = ax.get_xlim()[cost.lower_is_better], ax.get_ylim()[metric.lower_is_better]
    line = [(corners[0][0], worst_y), *corners, (worst_x, corners[-1][1])]
    ax.plot(*zip(*line, strict=True), color=style.GREY, linewidth=1.0, linestyle="--", drawstyle="steps-post", zorder=2)


def _clauses(drawn: list[_Drawn], best: list[_Drawn], cost: Metric, metric: Metric) -> list[str]:
    beaten = [one.name for one in drawn if one.whole and one not in best]
    diverged = [one.name for one in drawn if not one.whole]
    clauses = [
        f"on the front, the dashed line (no other is as good in both {metric.noun} and {cost.noun} and better in one): "
        f"{listing([one.name for one in best])}"
    ]
    if beaten:
        side = "right" if cost.lower_is_better else "left"
        where = f"{'above' if metric.lower_is_better else 'below'} or to the {side}"
        clauses.append(f"grey, {where} of it: {listing(beaten)}")
    if diverged:
        clauses.append(f"grey, since not all of their runs went to the end without diverging: {listing(diverged)}")
    how = seeds_phrase(*(one.value.n for one in drawn))
    clauses.append(f"{how}; which of two close points is better is not settled")
    return clauses


def _fit_axis(ax: Axes, which: str, found: Sequence[Estimate], scale: float) -> bool:
    """Scale and limits of an axis that shows estimates; whether an interval runs off its edge."""
    intervals = [(one.low * scale, one.high * scale) for one in found if one.half_width]
    return value_limits(ax, which, [one.mean * scale for one in found], intervals)
