"""What the 2:4 step costs, wherever a part holds a model with it against the same model without it, in one figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.comparisons import Compared, comparisons, twin_comparisons
from elas_lightning.analysis.equivalence import ALPHA
from elas_lightning.analysis.paper.load import OURS, Paper
from elas_lightning.analysis.plots.base import difference_limits
from elas_lightning.analysis.statistics import holm
from elas_lightning.analysis.wording import how_many_found, plural, room, sentence

# As sweeps name the step where it is the only thing that they switch; ELAS and its variants have twins in the table.
_STEP = ("2:4", "dense")
# Rows from which on they stand in two columns.
_TALL = 20


@style.styled
def cost_figure(paper: Paper) -> tuple[Figure, str] | None:
    """Each model against its dense twin, part by part, in per cent of perplexity; None where none has an interval."""
    parts = _costs(paper)
    shown = [one for part in parts for one in part]
    if not shown:
        return None
    columns = _columns(parts) if len(shown) > _TALL else [parts]
    longest = max(sum(map(len, column)) for column in columns)
    figure = style.new_figure(width=style.WIDTH * len(columns), height=0.7 + 0.2 * longest)
    found = [one.difference for one in shown if one.difference]
    spans = [(d.low, d.high) for d in found if d.low is not None and d.high is not None]
    said: list[str] = []
    for ax, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        said = difference_limits(ax, [d.value for d in found], spans, "%")
        _draw(ax, column)
        ax.set_ylim(longest - 0.5, -0.5)
        ax.set_xlabel("Difference in validation perplexity (%)")
    kept = sum(p is not None and p < ALPHA for p in holm([d.p for d in found]))
    clauses = [
        f"what the 2:4 step costs in {plural(len(shown), 'comparison')} with the same model without it, from "
        f"{plural(len(parts), 'sweep')}: means over pairs of runs with the same seed and 95 % intervals",
        f"{how_many_found(sum(d.found for d in found), len(found))} ({kept} after correction for all, Holm)",
    ]
    if left := [d for d in found if not d.found]:
        clauses.append(f"{'the others leave' if len(left) < len(found) else 'that leaves'} room for {room(left)}")
    return figure, sentence([*clauses, *said])


def _costs(paper: Paper) -> list[list[Compared]]:
    """The comparisons by part, in the document's order; parts with another objective than perplexity have none."""
    twins = paper.table.summary["twins"] if paper.table else {}
    pairs = {_STEP, *((method, twin) for method, twin in twins.items() if method.startswith(OURS))}
    parts = [
        [
            one
            for one in [*twin_comparisons(results), *comparisons(results)]
            if (one.level, one.base) in pairs and one.difference and one.difference.low is not None
        ]
        for results in paper.parts.values()
        if results.objective == "val_perplexity"
    ]
    return [part for part in parts if part]


def _columns(parts: list[list[Compared]]) -> list[list[list[Compared]]]:
    """Two columns of whole parts, as equal as that allows."""
    total = sum(map(len, parts))
    split = min(range(1, len(parts)), key=lambda i: abs(2 * sum(map(len, parts[:i])) - total), default=1)
    return [column for column in (parts[:split], parts[split:]) if column]


def _draw(ax: Axes, parts: Sequence[Sequence[Compared]]) -> None:
    """A row a comparison; every other part has a grey ground."""
    ax.axvline(0, color=style.GREY, linewidth=1, zorder=1)
    rows = [one for part in parts for one in part]
    top = 0
    for i, part in enumerate(parts):
        if i % 2 == 0:
            ax.axhspan(top - 0.5, top + len(part) - 0.5, color=style.GREY, alpha=0.08, linewidth=0)
        top += len(part)
    for y, one in enumerate(rows):
        d = one.difference
        if d is not None and d.low is not None and d.high is not None:
            look = style.look(1 if d.found else 0)
            reach = [[d.value - d.low], [d.high - d.value]]
            ax.errorbar([d.value], [y], xerr=reach, color=look.color, marker=look.marker, markersize=4, capsize=2)
    style.level_axis(ax, "y", range(len(rows)), [one.where or one.level for one in rows])
    ax.grid(axis="y", visible=False)
