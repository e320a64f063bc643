"""How much the GaLore family's evaluation loop flatters, on the same models, beside the gaps that papers claim.

The loop starts its counter of batches at 1 and so divides the sum of N batch means by N + 1: a loss of L becomes
L N / (N + 1), and the perplexity is multiplied by exp(-L / (N + 1)). It also averages batches without weighing their
tokens, which moves it further, either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.paper.load import Paper
from elas_lightning.analysis.paper.published import published, published_perplexities
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import MINUS, listing, number, plural

_SHOWN = (1, 100_000)


@dataclass(frozen=True)
class Measured:
    """One model measured both ways.

    Args:
        part, run: where it comes from.
        perplexity: token-weighted.
        galore: by the GaLore family's loop.
        batches: how many validation batches there were; None in files of an earlier version.
    """

    part: str
    run: str
    perplexity: float
    galore: float
    batches: int | None

    @property
    def flattery(self) -> float:
        """By how many per cent the loop's number is below the perplexity."""
        return 100 * (1 - self.galore / self.perplexity)


def measured(paper: Paper) -> list[Measured]:
    """The complete runs whose files have both numbers."""
    found = []
    for part, run, result in paper.results:
        metrics = result.get("metrics") or {}
        perplexity, galore = metrics.get("val_perplexity"), metrics.get("val_perplexity_galore_protocol")
        if result.get("state") == "complete" and perplexity and galore:
            batches = metrics.get("val_batches")
            found.append(Measured(part, run, perplexity, galore, int(batches) if batches else None))
    return found


def flattery(loss: float, batches: float | np.ndarray) -> np.ndarray:
    """Per cent by which the counter alone lowers a perplexity of ``exp(loss)``."""
    return -100 * np.expm1(-loss / (np.asarray(batches, float) + 1))


def batches_for(loss: float, per_cent: float) -> int:
    """The least number of batches at which the counter flatters by less than that."""
    return max(1, math.floor(loss / -math.log1p(-per_cent / 100)))


def claimed_gaps() -> dict[str, tuple[float, float]]:
    """Gaps that the paper reports, in per cent: ELAS to full rank by size, and the range to its dense twin."""
    full, ours = published_perplexities("full rank"), published_perplexities("ELAS")
    return {size: (100 * (ours[size] / full[size] - 1), ours[size]) for size in full}


def protocol_table(runs: Sequence[Measured]) -> Table:
    """Both numbers side by side, per part and number of batches, as means over its runs."""
    groups: dict[tuple[str, int | None], list[Measured]] = {}
    for run in runs:
        groups.setdefault((run.part, run.batches), []).append(run)
    rows = []
    for (part, batches), group in groups.items():
        spread = [run.flattery for run in group]
        loss = float(np.mean([math.log(run.perplexity) for run in group]))
        rows.append(
            (
                part,
                str(batches) if batches else "not recorded",
                str(len(group)),
                number(float(np.mean([run.perplexity for run in group])), 4),
                number(float(np.mean([run.galore for run in group])), 4),
                f"{number(min(spread))} to {number(max(spread))}",
                number(float(flattery(loss, batches))) if batches else "",
            )
        )
    columns = (
        "Part",
        "Batches N",
        "Runs",
        "Perplexity, weighted by tokens",
        "GaLore family's loop",
        "Flattered by (%), runs",
        "By the counter alone (%)",
    )
    caption = (
        "The same models on the same validation text. The last column is what dividing by N + 1 does by itself; the "
        "rest comes from averaging batches without weighing their tokens."
    )
    return Table(caption, columns, tuple(rows), 1)


def protocol_sentences(runs: Sequence[Measured]) -> list[str]:
    """What the comparison comes to."""
    gap = published()["gap_to_dense_twin"]
    perplexity = published_perplexities("ELAS")
    said = []
    if runs:
        spread = [run.flattery for run in runs]
        counts = sorted({run.batches for run in runs if run.batches})
        over = f" with {listing([str(count) for count in counts])} validation batches" if counts else ""
        said.append(
            f"On {plural(len(runs), 'model')} of ours the GaLore family's loop is {number(min(spread))} to "
            f"{number(max(spread))} % below the perplexity of the same predictions{over}."
        )
    else:
        said.append("No finished run has both numbers yet, so only the arithmetic can be shown.")
    size, value = next(iter(perplexity.items()))
    loss = math.log(value)
    claims = [100 * gap[end] / value for end in ("low", "high")]
    said.append(
        f"The paper's ELAS is {gap['low']} to {gap['high']} perplexity worse than its dense twin: at the {value:g} of "
        f"its {size} model {number(claims[0], 2)} to {number(claims[1], 2)} %. At that loss the loop alone lowers the "
        f"number by as much with {batches_for(loss, claims[0]):,} and {batches_for(loss, claims[1]):,} batches; 10 M "
        f"tokens are about 305 batches of 128 x 256, where it is {number(float(flattery(loss, 305)), 2)} % or "
        f"{number(value * float(flattery(loss, 305)) / 100, 2)} perplexity."
    )
    gaps = [
        f"{MINUS if share < 0 else '+'}{number(abs(share), 2)} % at {size}"
        for size, (share, _) in claimed_gaps().items()
    ]
    said.append(
        "Two methods that are measured by the same loop with the same N are flattered alike, and their order stands. "
        "A number from such a loop beside one from another loop, or with another N, is off by as much as the gaps in "
        f"question (ELAS to full rank as published: {listing(gaps)})."
    )
    return said


@style.styled
def protocol_figure(runs: Sequence[Measured]) -> Figure:
    """Flattery against the number of batches: the arithmetic as lines, our runs as points, claimed gaps as a band."""
    figure = style.new_figure()
    ax = figure.add_subplot()
    n = np.geomspace(*_SHOWN, 200)
    published_value = next(iter(published_perplexities("ELAS").values()))
    losses = {f"loss of perplexity {published_value:g} (paper, 60M)": math.log(published_value)}
    if runs:
        ours = float(np.median([run.perplexity for run in runs]))
        losses[f"loss of perplexity {number(ours)} (median of ours)"] = math.log(ours)
    for i, (name, loss) in enumerate(losses.items()):
        look = style.look(i)
        ax.plot(n, flattery(loss, n), color=look.color, linestyle=look.linestyle, label=name)
    if known := [(run.batches, run.flattery) for run in runs if run.batches]:
        look = style.look(1)
        ax.plot(
            [n for n, _ in known],
            [share for _, share in known],
            linestyle="none",
            color=look.color,
            marker="o",
            markersize=4,
            alpha=0.5,
            label="our runs, measured",
        )
    gap = published()["gap_to_dense_twin"]
    low, high = (100 * gap[end] / published_value for end in ("low", "high"))
    label = "ELAS to its dense twin, as published"
    ax.axhspan(low, high, color=style.look(2).color, alpha=0.2, linewidth=0, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*_SHOWN)
    ax.set_xlabel("Validation batches N")
    ax.set_ylabel("Perplexity flattered by (%)")
    style.plain_numbers(ax, "x")
    style.plain_numbers(ax, "y")
    figure.legend(loc="outside upper left", frameon=False, ncols=1)
    return figure
