"""What the kinds of plots share: reading their options and saying why one cannot be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import Metric, metric_of
from elas_lightning.analysis.parameters import Level, Parameter, level_name, spoken
from elas_lightning.analysis.points import Point, best_of, describe
from elas_lightning.analysis.statistics import Difference
from elas_lightning.analysis.wording import listing, lost, plural, plus_minus, seeds_phrase
from elas_lightning.errors import UserError
from elas_lightning.trials_table import STATES

Options = Mapping[str, Any]
# Beyond this many values ticks at each of them run into one another, and a tried value is rarely repeated.
_MOST_TICKS = 9
# With more measurements than this, markers hide the line they sit on.
MOST_MARKERS = 25
# Where the farthest end of an interval is so many times as far from zero as the middle one, most of them would be dots.
_FAR = 30
TIME_LABELS = {"tokens": "Training tokens", "step": "Optimizer step", "seconds": "Training time (s)"}


class CannotDraw(Exception):
    """The files hold too little for a requested plot; the message says what is lacking."""


def metric_in(results: SweepResults, options: Options) -> Metric:
    """The metric that is asked for, else the sweep's objective."""
    return metric_of(str(options.get("metric", results.objective)))


def required(options: Options, key: str) -> str:
    """An option that a kind cannot do without.

    Raises:
        UserError: if it is missing.
    """
    if key not in options:
        raise UserError(f"plots: a {options.get('kind')} plot needs `{key}`: the name of a searched parameter.")
    return str(options[key])


def time_axis(options: Options, default: str) -> str:
    """The ``x`` of a plot over time.

    Raises:
        UserError: if it is not one of ``TIME_LABELS``.
    """
    x = str(options.get("x", default))
    if x not in TIME_LABELS:
        raise UserError(f"plots: x={x!r} is not allowed over time; use one of {', '.join(TIME_LABELS)}.")
    return x


def complete_points(points: Sequence[Point], what: str) -> list[Point]:
    """The points with a finished run.

    Raises:
        CannotDraw: if there is none.
    """
    done = [point for point in points if point.values]
    if not done:
        raise CannotDraw(f"no run with {what} has completed")
    return done


class Scale:
    """Where the levels of a parameter lie along an axis.

    Numbers keep their distances (log on request, if all are positive); anything else, and numbers mixed with
    names (rank 8, 16, full rank), stands evenly spaced in the order of the sweep's file.
    """

    def __init__(self, parameter: Parameter, levels: Sequence[Level], log: bool) -> None:
        self.parameter = parameter
        self.levels = [level for level in parameter.levels if level in set(levels)]
        numbers = [float(level) for level in self.levels] if parameter.numeric else []
        self.log = bool(numbers) and log and min(numbers) > 0
        # A zero cannot stand on a log axis (warm-up 0, 500, 1000): then the values stand evenly spaced.
        self.even = not numbers or (log and not self.log)
        plain = [float(i) for i in range(len(self.levels))] if self.even else numbers
        self.crowded = not self.even and len(self.levels) > _MOST_TICKS
        self._place = dict(zip(self.levels, plain, strict=True))

    def place(self, level: Level, shift: float = 0.0) -> float:
        """Position of a level, moved by ``shift`` hundredths of the axis so that series do not overlap."""
        low, high = self._unit(min(self._place.values())), self._unit(max(self._place.values()))
        moved = self._unit(self._place[level]) + shift * ((high - low) or 1.0) / 100
        return float(np.exp(moved)) if self.log else moved

    def _unit(self, x: float) -> float:
        return float(np.log(x)) if self.log else x

    def apply(self, ax: Axes) -> None:
        """Set scale, limits, ticks and label of the x axis."""
        if self.log:
            ax.set_xscale("log")
        first, last = self._place[self.levels[0]], self._place[self.levels[-1]]
        low, high = self._unit(min(first, last)), self._unit(max(first, last))
        margin = 0.07 * (high - low) or 0.5
        ends = (low - margin, high + margin)
        ax.set_xlim(*(np.exp(ends) if self.log else ends))
        names = [level_name(self.parameter, level) for level in self.levels]
        if not self.crowded:
            style.level_axis(ax, "x", list(self._place.values()), [style.wrap(name, 11) for name in names])
            style.turn_long_names(ax, names)
        else:
            style.plain_numbers(ax, "x")
        ax.set_xlabel(self.parameter.label)


def shown_values(points: Sequence[Point], metric: Metric) -> tuple[list[float], list[tuple[float, float]]]:
    """Every seed's value and every point's interval, in the unit that is shown."""
    values = [value * metric.scale for point in points for value in point.values.values()]
    return values, [(e.low * metric.scale, e.high * metric.scale) for point in points if (e := point.estimate)]


def value_limits(ax: Axes, which: str, values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> bool:
    """Choose scale and limits of the axis that shows a metric.

    A spread of more than a factor of five goes on a log axis. The interval of two seeds can be many times
    wider than everything else (t = 12.7); limits then follow the values, and the interval runs off the edge.

    Returns:
        True when an interval is cut off by the edge.
    """
    low, high = min(values), max(values)
    log = low > 0 and high / low > 5
    (ax.set_xscale if which == "x" else ax.set_yscale)("log" if log else "linear")
    ends_low, ends_high = [a for a, _ in intervals] or [low], [b for _, b in intervals] or [high]
    if log:
        limits = (low / 1.3, high * 1.3)
        shown = limits
    else:
        # Equal values up to rounding get a few per cent of room instead of a window of 1e-13.
        spread = high - low if high - low > 1e-6 * abs(high) else abs(high) * 0.5 or 1.0
        limits = (max(min(ends_low), low - 1.5 * spread), min(max(ends_high), high + 1.5 * spread))
        room = 0.07 * max(limits[1] - limits[0], spread)
        shown = (limits[0] - room, limits[1] + room)
    (ax.set_xlim if which == "x" else ax.set_ylim)(*shown)
    style.plain_numbers(ax, which)
    return min(ends_low) < shown[0] or max(ends_high) > shown[1]


def difference_limits(
    ax: Axes, values: Sequence[float], intervals: Sequence[tuple[float, float]], unit: str
) -> list[str]:
    """Choose scale and limits of an x axis of differences, zero among them; what has to be said of them."""
    reaches = sorted(max(abs(low), abs(high)) for low, high in intervals)
    middle = reaches[(len(reaches) - 1) // 2] if reaches else 0.0
    if not middle or reaches[-1] < _FAR * middle:
        return [cut_clause(value_limits(ax, "x", [0.0, *values], intervals))]
    straight = 10.0 ** round(math.log10(middle))
    ends = [*values, *(end for interval in intervals for end in interval)]
    style.log_from_zero(ax, min(ends), max(ends), straight)
    return [f"beyond {straight:g} {unit} to each side the axis is logarithmic"]


def best_clause(results: SweepResults, metric: Metric, done: Sequence[Point]) -> str:
    """Say which of the finished points is best."""
    top, estimate = best_of(done, metric.column)
    value = f"{plus_minus(estimate, metric.scale)} ({seeds_phrase(estimate.n)})"
    return f"{metric.noun} is best with {describe(results, top.levels)}: {value}"


def colours_of(metric: Metric) -> str:
    """The colour map of a metric, from its better to its worse end."""
    # One hue from light to dark that also reads in grey; yellow stands for the better end.
    return "cividis_r" if metric.lower_is_better else "cividis"


def norm_of(values: np.ndarray) -> Normalize:
    """From values to shares of a scale, 0 to 1; logarithmic as an axis would be."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 5:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1e-9 + abs(low) * 1e-3)


def cut_clause(cut: bool) -> str:
    """Say that an interval is longer than it looks."""
    return "an interval that reaches the edge of the figure goes on beyond it" if cut else ""


def picked_clause(found: Difference | None, what: str, count: int) -> str:
    """Say that sides of a comparison were picked by the very values that it compares."""
    if found is None or found.low is None or count <= 2:
        return ""
    return f"{what} of {count}, which this interval does not allow for"


def losses_clause(points: Sequence[Point]) -> str:
    """Say which runs of the figure have no value, and why."""
    total = sum(sum(point.counts.values()) for point in points)
    said = lost({state: sum(point.counts[state] for point in points) for state in STATES})
    return f"of {plural(total, 'run')} shown, {listing(said)}: these have no part in the means" if said else ""


def rest_clause(results: SweepResults, points: Sequence[Point]) -> str:
    """Say that other searched parameters were settled at their best."""
    names = sorted({name for point in points for name in point.rest})
    if not names:
        return ""
    labels = listing([spoken(results.parameter(name)) for name in names])
    if all(point.settings == 1 for point in points):
        return f"points differ in {labels} too"
    return f"each point is at its best {labels} among those searched"


def draw_seeds(ax: Axes, values: Sequence[tuple[float, float]], look: style.Look) -> None:
    """The values that a mean is over, faint dots at their x and y."""
    xs, ys = [x for x, _ in values], [y for _, y in values]
    ax.plot(xs, ys, look.marker, markersize=3.5, color=look.color, alpha=style.FAINT, zorder=2)


def note_diverged(ax: Axes, numbered: bool) -> None:
    """Explain the crosses at the edge and the numbers above them, once a figure."""
    text = "\u00d7 diverged (with the number of runs)" if numbered else "\u00d7 diverged"
    ax.text(0.0, 1.07, text, transform=ax.transAxes, ha="left", va="bottom", fontsize=9, color=style.GREY)
