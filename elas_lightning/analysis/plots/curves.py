"""The loss while training runs: ``curves``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import level_name, side_name
from elas_lightning.analysis.plots.base import MOST_MARKERS, TIME_LABELS, CannotDraw, Options, rest_clause, time_axis
from elas_lightning.analysis.points import Point, gather
from elas_lightning.analysis.statistics import Estimate, estimate
from elas_lightning.analysis.wording import listing, plural, plus_minus, seeds_phrase, sentence

# Methods differ at the end of a loss curve; the first steps, several nats higher, would hide it.
_END = 1 / 3
_MOST_NAMED = 4


@style.styled
def curves(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """Loss while training: all of it above, the last third enlarged below; mean and 95 % band over seeds.

    A diverged run is drawn alone, dotted, up to a cross where it ended.

    Args:
        options: optionally ``series`` (colours), ``style`` (a second parameter, shown by the line style),
            ``value`` (``val_loss``), ``x`` (``tokens``, ``step`` or ``seconds``), ``filter``.
    """
    x = time_axis(options, "tokens")
    metric = metric_of(str(options.get("value", "val_loss")))
    keys = [str(options[key]) for key in ("series", "style") if options.get(key)]
    points = gather(results, keys, results.objective, options.get("filter"))
    if metric.column not in results.curves:
        raise CannotDraw(f"no run has {metric.column} in its curve.csv")
    # the perplexity of a spike overflows, in a run that completed all the same
    rows = results.curves[np.isfinite(results.curves[metric.column])]
    figure = style.new_figure(height=5.2)
    whole, end = figure.subplots(2, 1)
    curves_drawn: list[_Curve] = []
    dead = 0
    for point in points:
        look = _look(results, options, point)
        mine = rows[rows["run"].isin(point.runs)]
        for _, run in mine[mine["state"] == "diverged"].groupby("run"):
            dead += 1
            whole.plot(run[x], run[metric.column], color=look.color, linestyle=":", linewidth=1.2, zorder=2)
            whole.plot(run[x].iloc[-1:], run[metric.column].iloc[-1:], color=look.color, marker="x", markersize=8)
        band = _band(mine[mine["state"] == "complete"], x, metric.column)
        if len(band) >= 2:
            curves_drawn.append(_Curve(point, band, look))
    if not curves_drawn:
        raise CannotDraw(f"no complete runs with two measurements of {metric.column} at the same steps")
    _limits(whole, end, [curve.band for curve in curves_drawn])
    for ax, share in ((whole, 1.0), (end, _END)):
        for curve in curves_drawn:
            curve.draw(ax, markers=len(curve.band) * share <= MOST_MARKERS)
        ax.set_ylabel(metric.label.replace(" (", "\n("))
        style.plain_numbers(ax, "y")
        style.large_numbers(ax)
    whole.set_title("Whole training", loc="left", fontsize=10)
    end.set_title("Last third, enlarged", loc="left", fontsize=10)
    end.set_xlabel(TIME_LABELS[x])
    _name_curves(results, options, end, curves_drawn)
    return figure, _curves_caption(results, metric.noun, curves_drawn, dead)


class _Curve(NamedTuple):
    point: Point
    band: pd.DataFrame
    look: style.Look

    @property
    def final(self) -> Estimate:
        found: Estimate = self.band["estimate"].iloc[-1]
        return found

    def draw(self, ax: Axes, markers: bool) -> None:
        """Its mean, and its interval as a band."""
        x, look = self.band["x"], self.look
        line: dict[str, Any] = {"linestyle": look.linestyle, "marker": look.marker if markers else None}
        ax.plot(x, self.band["mean"], color=look.color, markersize=3.5, zorder=3, **line)
        ax.fill_between(x, self.band["low"], self.band["high"], color=look.color, alpha=0.12, linewidth=0)


def _look(results: SweepResults, options: Options, point: Point) -> style.Look:
    """Colour and marker by ``series``; the line by ``style`` where there is one."""
    series, second = options.get("series"), options.get("style")
    look = style.look(results.parameter(series).levels.index(point.levels[series]) if series else 0)
    if not second:
        return look
    index = results.parameter(second).levels.index(point.levels[second])
    return look._replace(linestyle=style.look(index).linestyle, marker=look.marker if index == 0 else "")


def _name_curves(results: SweepResults, options: Options, end: Axes, drawn: Sequence[_Curve]) -> None:
    """Both panels end at the same values; the enlarged one has the room to tell them apart."""
    series, second = options.get("series"), options.get("style")
    if series:
        parameter = results.parameter(series)
        ends = []
        for level in parameter.levels:
            mine = [curve for curve in drawn if curve.point.levels[series] == level]
            if mine:
                height = sum(curve.final.mean for curve in mine) / len(mine)
                look = _look(results, options, mine[0].point)
                ends.append((height, level_name(parameter, level), look._replace(linestyle="-") if second else look))
        style.label_ends(end, ends, parameter.label)
    if second:
        parameter = results.parameter(second)
        lines = [
            Line2D([], [], color=style.GREY, linestyle=style.look(i).linestyle, label=level_name(parameter, level))
            for i, level in enumerate(parameter.levels)
            if any(curve.point.levels[second] == level for curve in drawn)
        ]
        end.figure.legend(
            handles=lines,
            loc="outside upper left",
            ncols=style.legend_columns([str(line.get_label()) for line in lines]),
            frameon=False,
            title=parameter.label,
            title_fontsize=9,
            alignment="left",
            handlelength=3,
        )


def _curves_caption(results: SweepResults, noun: str, drawn: Sequence[_Curve], dead: int) -> str:
    def named(curve: _Curve) -> str:
        name = ", ".join(side_name(results.parameter(key), level) for key, level in curve.point.levels.items())
        return plus_minus(curve.final) + (f" for {name}" if name else "")

    counts = [curve.final.n for curve in drawn]
    how = f"({seeds_phrase(*counts)}{', shaded' if min(counts) > 1 else ''})"
    ordered = sorted(drawn, key=lambda curve: curve.final.mean)
    # A dozen numbers in a row are a table, and the report has one.
    if len(drawn) > _MOST_NAMED:
        clauses = [f"{noun} ends between {named(ordered[0])} and {named(ordered[-1])} {how}"]
    else:
        clauses = [f"{noun} ends at {listing([named(curve) for curve in drawn])} {how}"]
    if dead:
        clauses.append(f"{plural(dead, 'diverged run')} dotted up to a cross")
    return sentence([*clauses, rest_clause(results, [curve.point for curve in drawn])])


def _band(rows: pd.DataFrame, x: str, column: str) -> pd.DataFrame:
    """Mean and interval at the steps where every run was measured: a mean over changing runs would jump."""
    wide = rows.pivot_table(index="step", columns="run", values=column, aggfunc="last").dropna()
    places = rows.groupby("step")[x].mean().reindex(wide.index)
    records = []
    for place, (_, values) in zip(places, wide.iterrows(), strict=True):
        found = estimate(values.to_list())
        if found is not None:
            records.append({"x": place, "mean": found.mean, "low": found.low, "high": found.high, "estimate": found})
    return pd.DataFrame(records)


def _limits(whole: Axes, end: Axes, bands: Sequence[pd.DataFrame]) -> None:
    """Fit the axes to the means: the band of two seeds is many times wider than what it surrounds."""
    last = max(band["x"].max() for band in bands)
    everything = pd.concat([band["mean"] for band in bands])
    whole.set_ylim(*_padded(everything.min(), everything.max()))
    whole.set_xlim(0, last * 1.02)
    start = last * (1 - _END)
    tails = pd.concat([band[band["x"] >= start] for band in bands])
    # With few validations the last third may hold one; then the last two of each say more.
    if len(tails) < 2 * len(bands):
        tails = pd.concat([band.tail(2) for band in bands])
        start = tails["x"].min()
    reach = (tails["mean"].max() - tails["mean"].min()) or 0.01
    low = max(tails["low"].min(), tails["mean"].min() - 0.5 * reach)
    high = min(tails["high"].max(), tails["mean"].max() + 0.5 * reach)
    end.set_ylim(*_padded(low, high))
    end.set_xlim(start, last + 0.02 * (last - start))
    whole.axvspan(start, last, color="#000000", alpha=0.05, linewidth=0)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.07 * (high - low) or 0.05
    return low - room, high + room
