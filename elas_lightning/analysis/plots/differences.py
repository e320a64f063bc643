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
from elas_lightning.analysis.plots.base import CannotDraw, Options, difference_limits, draw_seeds, required
from elas_lightning.analysis.points import baseline
from elas_lightning.analysis.wording import how_many_found, room, sentence

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
    families = [
        [one for one in family if one.difference is not None]
        for family in (twin_comparisons(results, x), comparisons_of(results, x, base))
    ]
    panels = [family for family in families if family]
    if not panels:
        raise CannotDraw(f"no two choices of {x} have a finished seed in common")
    shown = [one for family in panels for one in family]
    places = list(dict.fromkeys(one.where for one in shown))
    several = len({(one.level, one.base) for one in shown}) > 1
    groups = places if several and 1 < len(places) <= _MOST_COLOURS else [""]
    names = [_names(family, len(places) > 1, groups) for family in panels]
    rows = [len(set(own)) for own in names]
    lines = max(2, 2 * len(groups), *(style.wrap(name, _NAME_WIDTH).count("\n") + 1 for own in names for name in own))
    figure = style.new_figure(height=0.3 + 0.8 * len(panels) + _LINE * lines * sum(rows))
    axes = figure.subplots(len(panels), height_ratios=rows, squeeze=False)[:, 0]
    clauses = _clauses(shown, results, len(panels) > 1)
    for ax, family, own in zip(axes, panels, names, strict=True):
        clauses += _panel(ax, results, list(zip(own, family, strict=True)), groups)
    if len(groups) > 1:
        handles, labels = axes[-1].get_legend_handles_labels()
        columns = style.legend_columns(labels)
        figure.legend(handles, labels, loc="outside upper right", ncols=columns, frameon=False, borderaxespad=0.0)
    return figure, sentence(list(dict.fromkeys(clauses)))


def _names(family: Sequence[Compared], several: bool, groups: Sequence[str]) -> list[str]:
    """What stands beside the row of each comparison: as much as its axis and its colour do not say."""
    pairs, bases = {(one.level, one.base) for one in family}, {one.base for one in family}
    placed = several and len(groups) == 1
    names = []
    for one in family:
        pair = one.level if len(bases) == 1 else f"{one.level} against {one.base}"
        names.append(", ".join([*([pair] if len(pairs) > 1 or not placed else []), *([one.where] if placed else [])]))
    return names


def _panel(ax: Axes, results: SweepResults, named: Sequence[tuple[str, Compared]], groups: Sequence[str]) -> list[str]:
    """One family of comparisons on an axis of its own; what has to be said of that."""
    rows = list(dict.fromkeys(name for name, _ in named))
    family = [one for _, one in named]
    seeds = [value for one in family for value in one.by_seed.values()]
    spans = [(d.low, d.high) for one in family if (d := one.difference) and d.low is not None and d.high is not None]
    said = difference_limits(ax, seeds, spans, _unit(results))
    ax.axvline(0, color=style.GREY, linewidth=1, zorder=1)
    height = 0.8 / len(groups)
    for i, group in enumerate(groups):
        middle = (i - (len(groups) - 1) / 2) * height
        mine = [(rows.index(name) + middle, one) for name, one in named if group in ("", one.where)]
        _draw(ax, mine, style.look(i), group or None, height)
    style.level_axis(ax, "y", range(len(rows)), [style.wrap(row, _NAME_WIDTH) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    what = f"Difference in {metric_of(results.objective).noun} ({_unit(results)})"
    if len({one.base for one in family}) == 1:
        level = family[0].level if len({one.level for one in family}) == 1 else ""
        what += f",{level and ' ' + level} against {family[0].base}"
    ax.set_xlabel(style.wrap(what, 44))
    return said


def _unit(results: SweepResults) -> str:
    return "%" if metric_of(results.objective).difference == "%" else "nats"


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


def _clauses(shown: Sequence[Compared], results: SweepResults, twins: bool) -> list[str]:
    tested = [one.difference for one in shown if one.difference and one.difference.low is not None]
    if not tested:
        return ["each pair shares one seed, too few for intervals"]
    found = [d for d in tested if d.found]
    clauses = ["pairs of runs with the same seed (dots), their means and 95 % intervals"]
    clauses.append(how_many_found(len(found), len(tested)))
    if left := [d for d in tested if not d.found]:
        clauses.append(f"{'the others leave' if found else 'that leaves'} room for {room(left)}")
    if twins:
        clauses.append("in the upper part each choice is beside the twin that the sweep names for it")
    return clauses
