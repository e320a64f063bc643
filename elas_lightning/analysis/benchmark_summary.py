"""What the benchmarks of one device say at a glance: ELAS's fastest way beside its dense twin, shape by shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.benchmark_records import FULL, KINDS, Measurement, backend_of, fastest, place_order
from elas_lightning.analysis.tables import Table

_MARK = "†"
_COLUMNS = 3
SHORT = {
    "ffn forward": "FFN forward",
    "ffn forward_backward": "FFN forward and backward",
    "train_step": "Training step",
    "prefill": "Prefill",
}


@dataclass(frozen=True)
class Line:
    """One kind of call at one number of tokens.

    Args:
        kind: A key of ``KINDS``.
        tokens: In one call.
        replayed: Whether CUDA graphs were replayed, so that launches are out of the way.
        best: ELAS's fastest way by shape.
        bound: The shapes where launches bound that way, or the twin that it is held against.
        full: Full rank's speed against the dense twin by shape, its fastest way, where it took part.
    """

    kind: str
    tokens: int
    replayed: bool
    best: dict[str, Measurement]
    bound: set[str]
    full: dict[str, float]

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU ran it."""
        return any(row.gpu for row in self.best.values())


def lines(rows: Sequence[Measurement]) -> list[Line]:
    """Everything that was measured of ELAS on one device, graphs before what they are graphs of."""
    found = []
    kinds = list(KINDS)
    keys = {(kinds.index(row.kind), row.tokens, not row.is_graph) for row in rows}
    for kind, tokens, plain in sorted(keys):
        own = [r for r in rows if (r.kind, r.tokens, r.is_graph) == (kinds[kind], tokens, not plain)]
        shapes = sorted({row.shape for row in own}, key=lambda shape: place_order((shape, tokens)))
        best = {shape: fastest([row for row in own if row.shape == shape]) for shape in shapes}
        full = {
            shape: max(row.ratio["median"] for row in own if (row.shape, row.contender) == (shape, FULL))
            for shape in {row.shape for row in own if row.contender == FULL}
        }
        known = {shape: row for shape, row in best.items() if row is not None}
        twins = {row.shape for row in own if row.is_measure and row.launch_bound}
        bound = twins | {shape for shape, row in known.items() if row.launch_bound}
        if known:
            found.append(Line(kinds[kind], tokens, not plain, known, bound, full))
    return found


def summary_table(found: Sequence[Line]) -> Table:
    """A row for each line, a column for each shape: the ratio and the backend that reached it."""
    shapes = sorted({s for line in found for s in line.best}, key=lambda shape: place_order((shape, 0)))
    cells = tuple(
        (
            SHORT[line.kind],
            f"{line.tokens:,}",
            "out of the way" if line.replayed else "included",
            *(_cell(line, shape) for shape in shapes),
        )
        for line in found
    )
    caption = (
        "Times the speed of the dense low-rank twin, ELAS's fastest way and the backend that computed it. Launches are "
        "out of the way where both are replayed as CUDA graphs."
    )
    if any(line.bound for line in found):
        caption += f" {_MARK}: one of the two is bound by launches, so the ratio says little about the kernels."
    return Table(caption, ("Call", "Tokens", "Launches", *(shape.upper() for shape in shapes)), cells, 3)


def _cell(line: Line, shape: str) -> str:
    if shape not in line.best:
        return ""
    row = line.best[shape]
    return f"{row.ratio['median']:.2f} {backend_of(row)}{' ' + _MARK if shape in line.bound else ''}"


@style.styled
def summary_figure(found: Sequence[Line]) -> Figure:
    """A panel for each line, a bar for each shape; hollow where launches bound it."""
    columns = min(_COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = style.new_figure(2.75 * columns + 0.6, 2.3 * rows + 0.5)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    most = max(len(line.best) for line in found)
    own, twin, whole = style.look(0), style.look(1), style.look(4)
    for axis, line in zip(axes, found, strict=False):
        for position, (shape, row) in enumerate(line.best.items()):
            height = row.ratio["median"]
            face = "white" if shape in line.bound else own.color
            axis.bar(position, height, 0.6, facecolor=face, edgecolor=own.color, linewidth=1.5)
            axis.annotate(
                f"{height:.2f}",
                (position, height),
                xytext=(0, 4.5),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
            if shape in line.full:
                axis.plot(position, line.full[shape], whole.marker, color=whole.color)
        axis.axhline(1.0, color=twin.color, linewidth=1.3, linestyle="--")
        axis.set_xlim(-0.6, most - 0.4)
        style.level_axis(axis, "x", range(len(line.best)), [shape.upper() for shape in line.best])
        launches = "replayed without launches" if line.replayed else "launches included"
        axis.set_title(f"{SHORT[line.kind]}\n{line.tokens:,} tokens, {launches}", fontsize=9)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    highest = max(row.ratio["median"] for line in found for row in line.best.values())
    axes[0].set_ylim(0, 1.15 * max(highest, 1.0))
    figure.supylabel("Times the dense low-rank twin's speed", fontsize=10)
    said = ["dashed: the twin"]
    said += ["hollow: bound by launches"] if any(line.bound for line in found) else []
    said += ["triangle: full-rank SwiGLU"] if any(line.full for line in found) else []
    figure.supxlabel("; ".join(said), fontsize=9)
    return figure
