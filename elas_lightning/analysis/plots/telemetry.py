"""The sparsity of the activations while training runs, layer by layer: ``telemetry``."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.plots.base import MOST_MARKERS, TIME_LABELS, CannotDraw, Options, time_axis
from elas_lightning.analysis.points import Point, describe, gather
from elas_lightning.analysis.statistics import estimate
from elas_lightning.analysis.wording import number, plus_minus, seeds_phrase, sentence
from elas_lightning.errors import UserError


class Quantity(NamedTuple):
    """A column of ``telemetry.csv``: axis label, what a sentence calls it, factor to the shown unit, that unit."""

    label: str
    noun: str
    scale: float = 100.0
    unit: str = " %"


QUANTITIES = {
    "natural_zeros": Quantity("Zeros before the sparsity step (%)", "share of zeros before the sparsity step"),
    "dropped_energy": Quantity("Energy dropped (%)", "energy dropped by the sparsity step"),
    "dropped_nonzeros": Quantity("Non-zeros dropped (%)", "share of non-zeros dropped by the sparsity step"),
    "mask_drift": Quantity("Choice given up since the last look (%)", "share of the choice that is given up"),
    "gradient_norm_ste": Quantity("Norm of the straight-through gradient", "straight-through gradient's norm", 1.0, ""),
    "gradient_norm_masked": Quantity("Norm of the exact gradient", "exact gradient's norm", 1.0, ""),
    "gradient_cosine": Quantity(
        "Cosine to the exact gradient", "cosine between straight-through and exact gradient", 1.0, ""
    ),
    "gradient_bias": Quantity(
        "Distance to the exact gradient (its norm = 1)",
        "distance of the straight-through gradient from the exact one",
        1.0,
        "",
    ),
    "effective_rank_up": Quantity("Effective rank, up projection", "effective rank of the up projection", 1.0, ""),
    "effective_rank_down": Quantity(
        "Effective rank, down projection", "effective rank of the down projection", 1.0, ""
    ),
    "effective_rank_hidden": Quantity(
        "Effective rank, hidden features", "effective rank of the hidden features", 1.0, ""
    ),
    "busiest_expert": Quantity(
        "Busiest expert's load (even = 1)", "busiest expert's load relative to an even share", 1.0, ""
    ),
}
_MOST_LAYER_LABELS = 8


@style.styled
def telemetry(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """A statistic of the activations by layer over training, mean over seeds; dark is shallow, light is deep.

    Args:
        options: ``value`` (one of ``QUANTITIES``); optionally ``site``
            (``ffn_hidden``), ``x`` (``step``), ``filter``.
    """
    value, site = str(options.get("value", "")), str(options.get("site", "ffn_hidden"))
    x = time_axis(options, "step")
    if value not in QUANTITIES:
        raise UserError(f"plots: telemetry value={value!r} is not allowed; use one of {', '.join(QUANTITIES)}.")
    quantity = QUANTITIES[value]
    points = gather(results, [], results.objective, options.get("filter"))
    rows = results.telemetry
    if not points or value not in rows:
        raise CannotDraw("no matching run has a telemetry.csv")
    (point,) = points
    rows = rows[rows["run"].isin(point.runs) & (rows["site"] == site) & (rows["state"] == "complete")]
    rows = rows[rows[value].notna()]
    if rows.empty:
        raise CannotDraw(f"no complete run has {value} of {site} in its telemetry.csv")
    rows = at_common_steps(rows)
    if rows.empty:
        raise CannotDraw(f"the complete runs have {value} of {site} at no step in common")
    layers = sorted(rows["layer"].unique())
    places = _places(results, rows, x)
    figure = style.new_figure()
    ax = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"]
    ends = []
    every = -(-len(layers) // _MOST_LAYER_LABELS)
    for i, layer in enumerate(layers):
        line = quantity.scale * rows[rows["layer"] == layer].groupby("step")[value].mean()
        # The light end of the map is left out: pale yellow on white paper cannot be seen.
        color = matplotlib.colors.to_hex(colours(0.88 * i / max(len(layers) - 1, 1)))
        look = style.Look(color, style.look(i).marker, "-")
        markers = look.marker if len(line) <= MOST_MARKERS else None
        ax.plot([places[step] for step in line.index], line.to_numpy(), color=color, marker=markers, markersize=4)
        if i % every == 0 or i == len(layers) - 1:
            ends.append((float(line.iloc[-1]), f"layer {layer:.0f}", look))
    ax.set_xlabel(TIME_LABELS[x])
    ax.set_ylabel(quantity.label)
    ax.set_ylim(*ax.get_ylim())  # final, as the labels at the ends need it
    style.plain_numbers(ax, "y")
    style.large_numbers(ax)
    style.label_ends(ax, ends)
    return figure, _telemetry_caption(results, rows, point, value, options)


def _places(results: SweepResults, rows: pd.DataFrame, x: str) -> dict[float, float]:
    """Where each step lies along ``x``: ``telemetry.csv`` has steps alone, ``curve.csv`` what they come to."""
    steps = sorted(rows["step"].unique())
    if x == "step":
        return dict(zip(steps, steps, strict=True))
    curves = results.curves
    known = curves[curves["run"].isin(rows["run"])].groupby("step")[x].mean() if x in curves else pd.Series()
    if known.empty:
        raise CannotDraw(f"no run with telemetry has {x} in its curve.csv")
    return dict(zip(steps, np.interp(steps, [0.0, *known.index], [0.0, *known]).tolist(), strict=True))


def at_common_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """The steps at which every run was looked at in every layer it has: a mean over changing runs would jump."""
    places = rows[["step", "run", "layer"]].drop_duplicates()
    counts = places.groupby("step").size()
    whole = counts[counts == len(places[["run", "layer"]].drop_duplicates())]
    return rows[rows["step"].isin(whole.index)]


def _telemetry_caption(results: SweepResults, rows: pd.DataFrame, point: Point, value: str, options: Options) -> str:
    _, noun, scale, unit = QUANTITIES[value]
    by_layer = scale * rows[rows["step"] == rows["step"].max()].groupby("layer")[value].mean()
    # One value a seed (mean over layers): layers of one run are not independent repeats.
    ends = []
    for step in (rows["step"].min(), rows["step"].max()):
        found = estimate((scale * rows[rows["step"] == step].groupby("seed")[value].mean()).to_list())
        if found is None:
            raise CannotDraw(f"no complete run has {value} at its first and last step")
        ends.append(found)
    first, last = ends
    kept = {**(options.get("filter") or {}), **point.rest}
    which = f" ({describe(results, kept)})" if kept else ""
    span = ""
    if len(by_layer) > 1:
        low, high = by_layer.idxmin(), by_layer.idxmax()
        span = (
            f"at the end it is lowest in layer {low:.0f} ({number(by_layer[low], 2)}{unit}) "
            f"and highest in layer {high:.0f} ({number(by_layer[high], 2)}{unit})"
        )
    begin, end = rows["step"].min(), rows["step"].max()
    move = f"goes from {plus_minus(first)}{unit} at step {begin:.0f} to {plus_minus(last)}{unit} at step {end:.0f}"
    if begin == end:
        move = f"is {plus_minus(last)}{unit} at step {end:.0f}"
    return sentence([f"the {noun}{which}, averaged over layers, {move} ({seeds_phrase(last.n)})", span])
