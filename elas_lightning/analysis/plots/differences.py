"""What the choices of a parameter change, seed by seed: ``differences``.

Seeds differ from one another by more than most choices do, so that the intervals of two means overlap where their
difference is certain. Pairs of runs with the same seed take that out.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.comparisons import Compared, comparisons_of, twin_comparisons
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.plots.base import CannotDraw, Options, cut_clause, draw_seeds, required, value_limits
from elas_lightning.analysis.points import baseline
from elas_lightning.analysis.wording import number, sentence

# More combinations of other parameters than this have no colours of their own.
_MOST_COLOURS = 7
_NAME_WIDTH, _LINE = 24, 0.16  # letters, inches


@style.styled
def differences(results: SweepResults, options: Options) -> tuple[Figure, str]:
    """Each level of ``x`` against its baseline, and above these against its twin, with seeds and 95 % intervals.

    Args:
        options: ``x``; optionally ``baseline``, which holds for the sweep's table, too. Where other parameters vary,
            each of their combinations has its colour.
    """
    x = required(options, "x")
    base = baseline(results, x, options) if "baseline" in options else ""
    twins, others = (
        [one for one in family if one.difference is not None]
        for family in (twin_comparisons(results, x), comparisons_of(results, x, base))
    )
    shown = [*twins, *others]
    if not shown:
        raise CannotDraw(f"no two choices of {x} have a finished seed in common")
    pairs, bases = {(one.level, one.base) for one in shown}, {one.base for one in shown}
    places = list(dict.fromkeys(one.where for one in shown))
    coloured = len(pairs) > 1 and 1 < len(places) <= _MOST_COLOURS
    apart = bool(twins and others) and len(bases) > 1
    names = [_name(one, len(pairs), len(places), coloured, apart and i < len(twins)) for i, one in enumerate(shown)]
    above = list(dict.fromkeys(names[: len(twins)]))
    heading = [f"against {others[0].base}:"] if apart else []
    rows = [*above, *heading, *dict.fromkeys(names[len(twins) :])]

    ticks = [style.wrap(row, _NAME_WIDTH) for row in rows]
    groups = places if coloured else [None]
    lines = max(2, max(tick.count("\n") for tick in ticks) + 1, 2 * len(groups))
    figure = style.new_figure(height=1.1 + _LINE * lines * len(rows))
    ax = figure.add_subplot()
    seeds = [value for one in shown for value in one.by_seed.values()]
    spans = [(d.low, d.high) for one in shown if (d := one.difference) and d.low is not None and d.high is not None]
    cut = value_limits(ax, "x", [0.0, *seeds], spans)
    ax.axvline(0, color=style.GREY, linewidth=1, zorder=1)
    height = 0.8 / len(groups)
    for i, group in enumerate(groups):
        middle = (i - (len(groups) - 1) / 2) * height
        mine = [(rows.index(name) + middle, one) for name, one in zip(names, shown, strict=True)]
        _draw(ax, [(y, one) for y, one in mine if group in (None, one.where)], style.look(i), group, height)
    if apart:
        ax.axhline(len(above), color=style.GREY, linewidth=0.7, linestyle=(0, (4, 3)))
    style.level_axis(ax, "y", range(len(rows)), ticks)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    metric = metric_of(results.objective)
    unit = "%" if metric.difference == "%" else "nats"
    what = f"Difference in {metric.noun} ({unit})"
    if len(bases) == 1:
        what += f", {shown[0].level if len(pairs) == 1 else ''} against {shown[0].base}".replace("  ", " ")
    ax.set_xlabel(style.wrap(what, 44))
    if coloured:
        figure.legend(loc="outside upper right", ncols=style.legend_columns(places), frameon=False, borderaxespad=0.0)
    return figure, sentence([*_clauses(shown, unit, apart), cut_clause(cut)])


def _name(one: Compared, pairs: int, places: int, coloured: bool, against: bool) -> str:
    """What stands beside a comparison's row: as much as the axis, the heading above it and its colour do not say."""
    said = [f"{one.level} against {one.base}" if against else one.level] if pairs > 1 or places == 1 else []
    return ", ".join([*said, *([one.where] if places > 1 and not coloured else [])])


def _draw(ax: Axes, rows: Sequence[tuple[float, Compared]], look: style.Look, name: str | None, height: float) -> None:
    """Means, intervals and seeds of one group, each at its place from the top."""
    known = [(place, one.difference) for place, one in rows if one.difference]
    reach = [
        (d.value - d.low, d.high - d.value) if d.low is not None and d.high is not None else (0.0, 0.0)
        for _, d in known
    ]
    ax.errorbar(
        [d.value for _, d in known],
        [place for place, _ in known],
        xerr=list(zip(*reach, strict=True)),
        color=look.color,
        marker=look.marker,
        linestyle="none",
        label=name,
        zorder=3,
    )
    draw_seeds(ax, [(value, place + 0.3 * height) for place, one in rows for value in one.by_seed.values()], look)


def _clauses(shown: Sequence[Compared], unit: str, twins: bool) -> list[str]:
    tested = [one.difference for one in shown if one.difference and one.difference.low is not None]
    if not tested:
        return ["each pair shares one seed, too few for intervals"]
    found = [d for d in tested if d.found]
    clauses = ["pairs of runs with the same seed (dots), their means and 95 % intervals"]
    clauses.append(_how_many(len(found), len(tested)))
    if left := [d for d in tested if not d.found]:
        most = max(abs(end) for d in left for end in (d.low, d.high) if end is not None)
        clauses.append(f"{'the others leave' if found else 'that leaves'} room for up to {number(most)} {unit}")
    if twins:
        clauses.append("above the broken line each choice is beside its twin, which differs from it in one thing")
    return clauses


def _how_many(found: int, tested: int) -> str:
    every = "the interval" if tested == 1 else f"all {tested} intervals"
    if found in (0, tested):
        verb = "leave zero out" if found else "include zero"
        return f"{every} {verb.replace(' ', 's ', 1) if tested == 1 else verb}"
    return f"{found} of {tested} intervals {'leaves' if found == 1 else 'leave'} zero out"
