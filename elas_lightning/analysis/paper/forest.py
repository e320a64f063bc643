"""Every method against its dense twin, with the margin of equivalence drawn behind the intervals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.equivalence import MARGIN, band
from elas_lightning.analysis.paper.table import Comparison
from elas_lightning.analysis.wording import decimals_of, interval, listing, sentence, signed


@style.styled
def forest(found: Sequence[Comparison]) -> tuple[Figure, str] | None:
    """Differences in per cent of perplexity, 95 % intervals thin and 90 % thick; None where none can be drawn.

    Equivalence at 5 % is the thick interval inside the band.
    """
    shown = [one for one in found if one.difference is not None]
    if not shown:
        return None
    figure = style.new_figure(height=1.2 + 0.45 * len(shown))
    ax = figure.add_subplot()
    equal = band(MARGIN)
    ax.axvspan(*equal, color=style.look(2).color, alpha=0.15, linewidth=0)
    ax.axvline(0, color=style.GREY, linewidth=1)
    clauses = []
    for row, one in enumerate(shown):
        d, e = one.difference, one.equivalence
        assert d is not None  # filtered above
        if d.low is not None and d.high is not None and e.low is not None and e.high is not None:
            ax.plot([d.low, d.high], [row, row], color=style.look(0).color, linewidth=1.2)
            ax.plot([e.low, e.high], [row, row], color=style.look(0).color, linewidth=4, alpha=0.5)
            clauses.append(f"{one.method} is {signed(d.value, decimals_of(d))} % ({interval(d)}) from {one.against}")
        ax.plot([d.value], [row], marker="o", color=style.look(0).color)
    names = [style.wrap(f"{one.method} against {one.against}", 24) + _lost(one) for one in shown]
    style.level_axis(ax, "y", range(len(shown)), names)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    reach = max(abs(equal[0]) * 1.3, *(abs(end) for end in ax.get_xlim()))
    ax.set_xlim(-reach, reach)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("Difference in validation perplexity (%)")
    lead = (
        f"differences paired by seed with 95 % (thin) and 90 % intervals (thick); two methods are equivalent within "
        f"{100 * MARGIN:g} % where the thick one lies in the band, if no run of theirs diverged; that the tests are "
        f"several is corrected for in the table alone"
    )
    return figure, sentence([lead, listing(clauses) if clauses else "one seed each, so no interval"])


def _lost(one: Comparison) -> str:
    """An interval of the runs that are left shows no equivalence, wherever it lies."""
    return f"\n({one.equivalence.lost} diverged)" if one.equivalence.lost else ""
