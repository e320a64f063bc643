"""What happens while training runs: ``curves`` of the loss and ``telemetry`` of the sparsity by layer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import side_name
from elas_lightning.analysis.plots.base import CannotDraw, Options, rest_clause
from elas_lightning.analysis.points import Point, describe, gather
from elas_lightning.analysis.statistics import Estimate, estimate
from elas_lightning.analysis.wording import listing, plural, plus_minus, seeds_phrase, sentence
from elas_lightning.errors import UserError

_X_LABELS = {"tokens": "Training tokens", "step": "Optimizer step", "seconds": "Training time (s)"}
_TELEMETRY = {
    "natural_zeros": ("Zeros before the 2:4 step (%)", "share of zeros before the 2:4 step"),
    "dropped_energy": ("Energy dropped by 2:4 (%)", "energy dropped by the 2:4 step"),
    "dropped_nonzeros": ("Non-zeros dropped by 2:4 (%)", "share of non-zeros dropped by the 2:4 step"),
}
# Methods differ at the end of a loss curve; the first steps, several nats higher, would hide it.
_END = 1 / 3
_MOST_MARKERS = 25
_MOST_LAYER_LABELS = 8


def _x_option(options: Options, default: str) -> str:
    x = str(options.get("x", default))
    if x not in _X_LABELS:
        raise UserError(f"plots: x={x!r} is not allowed over time; use one of {', '.join(_X_LABELS)}.")
    return x


@style.styled
def curves(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """Loss while training: all of it above, the last third enlarged below; mean and 95 % band over seeds.

    A diverged run is drawn alone, dotted, up to a cross where it ended.

    Args:
        options: optionally ``series``, ``value`` (``val_loss``), ``x`` (``tokens``, ``step`` or ``seconds``),
            ``filter``.
    """
    x, series = _x_option(options, "tokens"), options.get("series")
    metric = metric_of(str(options.get("value", "val_loss")))
    points = gather(results, [series] if series else [], results.objective, options.get("filter"))
    if metric.column not in results.curves:
        raise CannotDraw(f"no run has {metric.column} in its curve.csv")
    rows = results.curves[results.curves[metric.column].notna()]
    figure = style.new_figure(height=5.2)
    whole, end = figure.subplots(2, 1)
    finals: list[tuple[str, Estimate, style.Look]] = []
    shown, dead = [], 0
    for i, point in enumerate(points):
        look = style.look(i)
        mine = rows[rows["run"].isin(point.runs)]
        for _, run in mine[mine["state"] == "diverged"].groupby("run"):
            dead += 1
            whole.plot(run[x], run[metric.column], color=look.color, linestyle=":", linewidth=1.2, zorder=2)
            whole.plot(run[x].iloc[-1:], run[metric.column].iloc[-1:], color=look.color, marker="x", markersize=8)
        band = _band(mine[mine["state"] == "complete"], x, metric.column)
        if len(band) < 2:
            continue
        for ax in (whole, end):
            few = len(band) * (_END if ax is end else 1) <= _MOST_MARKERS
            ax.plot(band["x"], band["mean"], color=look.color, linestyle=look.linestyle, zorder=3,
                    marker=look.marker if few else None, markersize=3.5)
            ax.fill_between(band["x"], band["low"], band["high"], color=look.color, alpha=0.13, linewidth=0)
        name = side_name(results.parameter(series), point.levels[series]) if series else ""
        finals.append((name, band["estimate"].iloc[-1], look))
        shown.append(band)
    if not finals:
        raise CannotDraw(f"no complete runs with two measurements of {metric.column} at the same steps")
    _limits(whole, end, shown)
    for ax in (whole, end):
        ax.set_ylabel(metric.label.replace(" (", "\n("))
        style.plain_numbers(ax, "y")
        style.large_numbers(ax)
    whole.set_title("Whole training", loc="left", fontsize=10)
    end.set_title("Last third, enlarged", loc="left", fontsize=10)
    end.set_xlabel(_X_LABELS[x])
    if series:
        ends = [(value.mean, name, look) for name, value, look in finals]
        # Both panels end at the same values; the enlarged one has room to tell them apart.
        style.label_ends(end, ends, results.parameter(series).label)
    return figure, _curves_caption(results, points, metric.noun, finals, dead)


def _curves_caption(
    results: SweepResults,
    points: Sequence[Point],
    noun: str,
    finals: Sequence[tuple[str, Estimate, style.Look]],
    dead: int,
) -> str:
    values = listing([plus_minus(value) + (f" for {name}" if name else "") for name, value, _ in finals])
    n = min(value.n for _, value, _ in finals)
    clauses = [f"{noun} ends at {values} ({seeds_phrase(n)}{', shaded' if n > 1 else ''})"]
    if dead:
        clauses.append(f"{plural(dead, 'diverged run')} dotted up to a cross")
    return sentence([*clauses, rest_clause(results, points)])


def _band(rows: pd.DataFrame, x: str, column: str) -> pd.DataFrame:
    """Mean and interval at the steps where every run was measured: a mean over changing runs would jump."""
    wide = rows.pivot_table(index="step", columns="run", values=column, aggfunc="last").dropna()
    places = rows.groupby("step")[x].mean()
    records = []
    for step, values in wide.iterrows():
        found = estimate(values.to_list())
        if found is not None:
            records.append({"x": places[step], "mean": found.mean, "low": found.low, "high": found.high,
                            "estimate": found})
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


@style.styled
def telemetry(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """A statistic of the activations by layer over training, mean over seeds; dark is shallow, light is deep.

    Args:
        options: ``value`` (``natural_zeros``, ``dropped_energy`` or ``dropped_nonzeros``); optionally ``site``
            (``ffn_hidden``), ``x`` (``step``), ``filter``.
    """
    value, site, x = str(options.get("value", "")), str(options.get("site", "ffn_hidden")), _x_option(options, "step")
    if value not in _TELEMETRY:
        raise UserError(f"plots: telemetry value={value!r} is not allowed; use one of {', '.join(_TELEMETRY)}.")
    label, noun = _TELEMETRY[value]
    points = gather(results, [], results.objective, options.get("filter"))
    rows = results.telemetry
    if not points or value not in rows:
        raise CannotDraw("no matching run has a telemetry.csv")
    (point,) = points
    rows = rows[rows["run"].isin(point.runs) & (rows["site"] == site) & (rows["state"] == "complete")]
    rows = rows[rows[value].notna()]
    if rows.empty:
        raise CannotDraw(f"no complete run has {value} of {site} in its telemetry.csv")
    layers = sorted(rows["layer"].unique())
    figure = style.new_figure()
    ax = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"]
    ends = []
    every = -(-len(layers) // _MOST_LAYER_LABELS)
    for i, layer in enumerate(layers):
        line = 100.0 * rows[rows["layer"] == layer].groupby(x)[value].mean()
        # The light end of the map is left out: pale yellow on white paper cannot be seen.
        color = matplotlib.colors.to_hex(colours(0.88 * i / max(len(layers) - 1, 1)))
        look = style.Look(color, style.look(i).marker, "-")
        markers = look.marker if len(line) <= _MOST_MARKERS else None
        ax.plot(line.index, line.to_numpy(), color=color, marker=markers, markersize=4)
        if i % every == 0 or i == len(layers) - 1:
            ends.append((float(line.iloc[-1]), f"layer {layer:.0f}", look))
    ax.set_xlabel(_X_LABELS[x])
    ax.set_ylabel(label)
    ax.set_ylim(*ax.get_ylim())  # final, as the labels at the ends need it
    style.plain_numbers(ax, "y")
    style.large_numbers(ax)
    style.label_ends(ax, ends)
    return figure, _telemetry_caption(results, rows, point, value, noun, options)


def _telemetry_caption(
    results: SweepResults, rows: pd.DataFrame, point: Point, value: str, noun: str, options: Options
) -> str:
    by_layer = 100.0 * rows[rows["step"] == rows["step"].max()].groupby("layer")[value].mean()
    # One value a seed (mean over layers): layers of one run are not independent repeats.
    ends = []
    for step in (rows["step"].min(), rows["step"].max()):
        found = estimate((100.0 * rows[rows["step"] == step].groupby("seed")[value].mean()).to_list())
        if found is None:
            raise CannotDraw(f"no complete run has {value} at its first and last step")
        ends.append(found)
    first, last = ends
    kept = {**(options.get("filter") or {}), **point.rest}
    which = f" ({describe(results, kept)})" if kept else ""
    span = ""
    if len(by_layer) > 1:
        low, high = by_layer.idxmin(), by_layer.idxmax()
        span = f"at the end it is lowest in layer {low:.0f} ({by_layer[low]:.2g} %) and highest in layer {high:.0f} ({by_layer[high]:.2g} %)"
    move = f"goes from {plus_minus(first)} % at step {rows['step'].min():.0f} to {plus_minus(last)} % at step {rows['step'].max():.0f}"
    return sentence([f"the {noun}{which}, averaged over layers, {move} ({seeds_phrase(last.n)})", span])
