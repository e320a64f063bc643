"""One look for every figure, and files that come out the same byte for byte.

Figures are made through matplotlib's object-oriented API on the Agg canvas: no pyplot, no window, no state
that outlives a call. Colours are those of Okabe and Ito, which stay apart for colour-blind readers; markers
and line styles repeat the distinction for grey print.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from matplotlib.transforms import Transform

DPI = 200
# A half column of a paper or a phone is about 3.4 inches wide: at that width 10 pt still reads as 7 pt.
WIDTH, HEIGHT = 4.8, 3.3
GREY = "#666666"
FAINT = 0.35
# Labels at the ends of lines: beyond so many heights of their axis, or such a share of the figure's height with what
# stands above them, they would push the axis out of the figure.
_MOST_HEIGHT, _MOST_OF_FIGURE = 1.5, 0.9
_LABEL_LINE = 13.5  # points
# Names along x: letters that fit level, and how many names of how many letters fit slanting.
_MOST_LETTERS, _MOST_TURNED, _LONGEST_TURNED = 42, 6, 22
_LEGEND_ROW = 0.19  # inches
_RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_GREYS = ("#b0b0b0", "#7d7d7d", "#4a4a4a")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ((5, 1.5), (5, 1.5, 1, 1.5), (1.2, 1.2), (8, 2), (3, 1))
_LINES: tuple[Any, ...] = ("-", *((0, dashes) for dashes in _DASHES), "-")

# Typed loosely: matplotlib's own type for this is a list of some 300 literal names.
_RC: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same glyphs
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "errorbar.capsize": 3,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.formatter.useoffset": False,
    # Names are what people call their choices: "cost $5 and $6" is no formula.
    "text.parse_math": False,
    # Text as outlines: the picture is the same on a machine without the font. The words are in the caption.
    "svg.fonttype": "path",
    # Element ids in an SVG are random unless salted.
    "svg.hashsalt": "elas-lightning",
    "path.simplify": True,
}


class Look(NamedTuple):
    """How one series is drawn."""

    color: str
    marker: str
    linestyle: Any


def look(index: int) -> Look:
    """The look of series ``index``; markers shift after seven, so that 49 combinations differ."""
    n = len(_COLOURS)
    return Look(_COLOURS[index % n], _MARKERS[(index + index // n) % n], _LINES[(index + index // n) % n])


def grey(index: int) -> str:
    """The grey of series ``index`` where colour stands for something else; with markers 21 combinations differ."""
    return _GREYS[index // len(_MARKERS) % len(_GREYS)]


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the look for the length of a ``with`` block, leaving the caller's settings as they were."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a drawing function so that what it makes has the house style."""

    @wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with house_style():
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure on an Agg canvas, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``.svg`` without dates or versions in them: equal data gives equal bytes."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with house_style():
        figure.savefig(png, dpi=DPI, metadata={"Software": None})
        # laid out is laid out: a second time takes as long as to draw it, and would be for another resolution
        figure.set_layout_engine(None)
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def level_axis(ax: Axes, which: str, positions: Sequence[float], names: Sequence[str]) -> None:
    """Ticks exactly at the tried values, named as a person would write them (4, 8, 16; not 10^1)."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(list(positions)))
    axis.set_major_formatter(FixedFormatter(list(names)))
    axis.set_minor_locator(NullLocator())


def turn_long_names(ax: Axes, names: Sequence[str]) -> None:
    """Turn the names of level ticks along x where they would run into one another, and where that is not enough, stand
    them upright in one line each, for which the figure grows."""
    if sum(map(len, names)) <= _MOST_LETTERS:
        return
    if len(names) <= _MOST_TURNED and max(map(len, names)) <= _LONGEST_TURNED:
        ax.tick_params(axis="x", labelrotation=35)
        return
    ax.xaxis.set_major_formatter(FixedFormatter(list(names)))
    ax.tick_params(axis="x", labelrotation=90)
    figure = ax.get_figure(root=True)
    assert figure is not None  # an axes that is drawn on has a figure
    figure.set_figheight(figure.get_figheight() + 0.07 * max(map(len, names)))


def plain_numbers(ax: Axes, which: str) -> None:
    """Round tick values in plain figures (0.001, 250, 1,200,000), on linear and on log axes.

    Call it when the limits of a log axis are final: a few powers of ten where they are wide apart, and where there may
    be one in them or none, what lies between, too.
    """
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())
    if axis.get_scale() == "linear":
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        return
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=6))
    if decades > 5:
        axis.set_major_formatter(FuncFormatter(lambda value, _: "10" + f"{math.log10(value):.0f}".translate(_RAISED)))


def log_from_zero(ax: Axes, low: float, high: float, straight: float) -> None:
    """A scale along x that is logarithmic on both sides of a straight piece from ``-straight`` to ``straight``, a power
    of ten; its limits, and ticks at the powers of ten."""
    ax.set_xscale("symlog", linthresh=straight)
    ax.set_xlim(1.3 * min(low, -straight), 1.3 * max(high, straight))
    powers = [straight * 10.0**i for i in range(12)]
    ticks = [tick for tick in (0.0, *powers, *(-power for power in powers)) if 1.3 * low <= tick <= 1.3 * high]
    level_axis(ax, "x", ticks, [_plain(tick) for tick in ticks])


def _plain(value: float) -> str:
    text = f"{value:,.10g}" if abs(value) >= 1e-4 else f"{value:g}"
    return text.replace("-", "\u2212") if value <= -1e-4 else text


def large_numbers(ax: Axes) -> None:
    """Counts along x as 500k or 1.5M: full figures would run into one another."""
    ax.xaxis.set_major_formatter(EngFormatter(places=None, sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def cross(ax: Axes, at: tuple[float, float], edge: Transform, look: Look) -> None:
    """Mark what has no value, a diverged run, at an edge of the axes: off the scale, without a height invented."""
    ax.plot(*at, "x", markersize=8, markeredgewidth=2, color=look.color, clip_on=False, transform=edge, zorder=5)


def note(ax: Axes, text: str, at: tuple[float, float], edge: Transform, away: tuple[float, float], **how: Any) -> None:
    """A few small words, so many points away from a mark at an edge."""
    ax.annotate(text, at, away, xycoords=edge, textcoords="offset points", fontsize=8, color=GREY, **how)


def wrap(text: str, width: int = 16) -> str:
    """Break a long level name at spaces, underscores and plus signs."""
    spaced = text.replace("_", "_\u200b")
    lines = textwrap.wrap(spaced.replace("\u200b", " "), width, break_long_words=False) or [text]
    return "\n".join(line.replace("_ ", "_") for line in lines)


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, Look]], title: str = "") -> None:
    """Name each series next to where its line ends, instead of in a legend that the eye has to match.

    Labels keep the order of the ends and move apart where they would overlap; where they are too many for the height
    of the axis they stand in a legend below, in the same order. Call it when the limits of the axis are final.

    Args:
        ends: last y in data units, name and look of each series.
        title: what the names are values of; written above them.
    """
    to_axes = ax.transAxes.inverted()
    figure = ax.get_figure(root=True)
    assert figure is not None  # an axes that is drawn on has a figure
    height = figure.get_size_inches()[1] * ax.get_position().height * 72
    wrapped = sorted(
        ((float(to_axes.transform(ax.transData.transform((1.0, y)))[1]), wrap(name), style) for y, name, style in ends),
        key=lambda item: item[0],
    )
    heights = [(1 + text.count("\n")) * _LABEL_LINE / height for _, text, _ in wrapped]
    above = wrap(title, 18) if title else ""
    lines = sum(1 + text.count("\n") for text in (above, *(text for _, text, _ in wrapped)) if text)
    room = figure.get_size_inches()[1] * 72 * _MOST_OF_FIGURE
    if sum(heights) > _MOST_HEIGHT or lines * _LABEL_LINE > room:
        by_end = sorted(ends, key=lambda item: item[0], reverse=True)
        _legend_below(figure, [(name, style) for _, name, style in by_end], title)
        return
    places = _spread([y for y, _, _ in wrapped], heights)
    for y, (_, text, style) in zip(places, wrapped, strict=True):
        outside: dict[str, Any] = {"color": style.color, "transform": ax.transAxes, "clip_on": False}
        ax.add_artist(Line2D([1.03, 1.10], [y, y], linestyle=style.linestyle, **outside))
        ax.add_artist(Line2D([1.065], [y], linestyle="none", marker=style.marker, **outside))
        ax.text(1.12, y, text, transform=ax.transAxes, va="center", ha="left", fontsize=9, linespacing=1.0)
    if title:
        top = max(places[-1] + heights[-1] / 2 + 9 / height, 0.0)
        ax.text(1.03, top, above, transform=ax.transAxes, va="bottom", ha="left", fontsize=9, color=GREY)


def _legend_below(figure: Figure, entries: Sequence[tuple[str, Look]], title: str) -> None:
    """A legend under everything, for which the figure grows."""
    handles = [
        Line2D([], [], color=style.color, linestyle=style.linestyle, marker=style.marker, label=name)
        for name, style in entries
    ]
    columns = legend_columns([name for name, _ in entries])
    rows = -(-len(handles) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * rows)
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        title=title or None,
        title_fontsize=9,
        alignment="left",
        handlelength=3,
    )


def legend_columns(names: Sequence[str]) -> int:
    """How many columns of a legend with these names fit into a figure's width, three at the most."""
    return max(1, min(3, len(names), int(WIDTH / (0.6 + 0.075 * max(map(len, names))))))


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Ascending places half of both heights apart or more, as near to ``wanted`` as centred blocks allow."""
    blocks: list[list[int]] = []
    centres: list[float] = []
    for i, y in enumerate(wanted):
        blocks.append([i])
        centres.append(min(max(y, 0.0), 1.0))
        # Two blocks that touch become one, centred on what its members wanted.
        while len(blocks) > 1:
            (low, high), (a, b) = blocks[-2:], centres[-2:]
            if b - a >= (sum(heights[j] for j in low) + sum(heights[j] for j in high)) / 2:
                break
            merged = low + high
            blocks[-2:] = [merged]
            centres[-2:] = [sum(min(max(wanted[j], 0.0), 1.0) for j in merged) / len(merged)]
    places = []
    for block, centre in zip(blocks, centres, strict=True):
        y = centre - sum(heights[j] for j in block) / 2
        for j in block:
            places.append(y + heights[j] / 2)
            y += heights[j]
    return places
