"""Benchmark records as tables, plots and a page: how fast each way is beside the dense twin, and what it keeps.

Reads what ``benchmarks/*.py`` wrote and nothing else. Ratios were taken within rounds of one process; absolute times
are shown for GPUs alone, since a CPU's say more about its neighbours than about the code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.page import data_uri, render, table_html
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import number
from elas_lightning.errors import UserError

KINDS = {
    "ffn forward": "Feed-forward network, forward",
    "ffn forward_backward": "Feed-forward network, forward and backward",
    "train_step": "Whole training step",
    "prefill": "Prefill",
}
QUESTION = "How fast is 2:4 sparsity beside its dense low-rank twin, and what does it keep in memory?"
# A call is bound by its launches where the host alone needs this share of its time.
_LAUNCH_BOUND = 0.9
_GRAPH = ", graph"
# Where a record holds the bytes that a mode keeps.
_KEPT = {"eager": "kept_bytes", "compiled": "kept_bytes_compiled"}
# More panels than these are no longer read side by side.
_PANELS = 5
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits")
_TWIN = "low-rank ReLU²"
_MIB = 2**20


@dataclass(frozen=True)
class Measurement:
    """One contender at one place.

    Args:
        kind: A key of ``KINDS``.
        device: Name of the device.
        gpu: Whether it is one.
        shape: ``60m`` and so on.
        tokens: In one call.
        contender: Model, backend and storage.
        mode: ``eager``, ``compiled``, ``compiled by block`` or ``max-autotune``; a CUDA graph's ends in ``, graph``.
        seconds: Median of a call.
        host: Seconds the host itself needs for a call; None on a CPU.
        ratio: Median and percentiles (20, 80) of the speed against the twin; of a graph, against the twin's graph.
        share: Of the measured matrix-multiply peak, dense FLOPs counted.
        kept: Bytes kept for backward by one FFN in this mode, where measured.
        kept_ratio: Of those to the twin's.
        memory: Bytes of a training step by part, where measured.
        joules: Of a call, where the board has a counter.
    """

    kind: str
    device: str
    gpu: bool
    shape: str
    tokens: int
    contender: str
    mode: str
    seconds: float
    host: float | None
    ratio: Mapping[str, float]
    share: float
    kept: int | None
    kept_ratio: float | None
    memory: Mapping[str, int | None] | None
    joules: float | None

    @property
    def name(self) -> str:
        """Contender and mode."""
        return f"{self.contender}, {self.mode}"

    @property
    def is_graph(self) -> bool:
        """Whether a CUDA graph was replayed."""
        return self.mode.endswith(_GRAPH)

    @property
    def launch_bound(self) -> bool:
        """Whether the host's launches alone take as long as the call."""
        return self.host is not None and not self.is_graph and self.host >= _LAUNCH_BOUND * self.seconds


def read_records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every benchmark record below a folder.

    Raises:
        UserError: There is none, or a file cannot be read.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it or measure again") from None
        if isinstance(record, dict) and record.get("benchmark") in ("ffn", "train_step", "prefill"):
            found.append((path, record))
    if not found:
        raise UserError(f"there is no benchmark record in {folder}: run `elas bench --json FILE` first")
    return found


def measurements(record: Mapping[str, Any]) -> Iterator[Measurement]:
    """What a record holds, one by one.

    Raises:
        UserError: It lacks a field.
    """
    try:
        for case in record["cases"]:
            for row in _rows(record["benchmark"], case):
                about = case["contenders"][row["contender"]]
                kept = _KEPT.get(row["mode"].removesuffix(_GRAPH), "")
                yield Measurement(
                    device=record["device"],
                    gpu=record["device_type"] == "cuda",
                    shape=case["shape"],
                    tokens=case.get("tokens") or case["batch"] * case["sequence"],
                    seconds=row["seconds"]["median"],
                    host=row.get("host_seconds"),
                    share=row["share_of_matmul_peak"],
                    kept=about.get(kept),
                    kept_ratio=about.get(kept.replace("bytes", "against"), {}).get(_TWIN),
                    memory=about.get("memory") or None,
                    joules=row.get("joules"),
                    **{key: row[key] for key in ("kind", "contender", "mode", "ratio")},
                )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"a record of {record.get('command')!r} is not of this version ({error!r}): measure again"
        ) from None


def _rows(benchmark: str, case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if benchmark == "train_step":
        for name, row in case["contenders"].items():
            if "seconds" in row:
                yield {**row, "kind": benchmark, "contender": name, "mode": case["mode"],
                       "ratio": row["speed_against"][_TWIN]}  # fmt: skip
        return
    for row in case["measured"]:
        kind = f"ffn {row['kind']}" if benchmark == "ffn" else benchmark
        yield {**row, "kind": kind, "ratio": row["speed_against"][_TWIN]}


def speed_table(rows: Sequence[Measurement]) -> Table:
    """Every measurement of one kind: ratio, share of peak, time on a GPU, bytes kept."""
    extra: dict[str, list[str]] = {}
    if any(row.gpu for row in rows):
        extra["Microseconds"] = [f"{row.seconds * 1e6:,.0f}" for row in rows]
    for heading, values, digits in (
        ("The host's own", [None if row.host is None else row.host * 1e6 for row in rows], 0),
        ("MiB kept", [None if row.kept is None else row.kept / _MIB for row in rows], 1),
        ("Times the twin's", [row.kept_ratio for row in rows], 2),
        ("Joules a million tokens", [row.joules and row.joules / row.tokens * 1e6 for row in rows], 1),
    ):
        if any(value is not None for value in values):
            extra[heading] = ["" if value is None else f"{value:,.{digits}f}" for value in values]
    if any(row.launch_bound for row in rows):
        extra["Bound by"] = ["launches" if row.launch_bound else "" for row in rows]
    columns = ("Shape", "Tokens", "Contender", "Times the dense twin", "20 to 80 %", "Share of peak")
    cells = [
        (
            row.shape,
            f"{row.tokens:,}",
            row.name,
            f"{row.ratio['median']:.2f}",
            f"{row.ratio['p20']:.2f} to {row.ratio['p80']:.2f}",
            f"{row.share:.0%}",
            *(column[index] for column in extra.values()),
        )
        for index, row in enumerate(rows)
    ]
    caption = (
        "Speed as a ratio to the dense low-rank twin, medians and percentiles over rounds in which all took turns; "
        "above 1 is faster than the twin; a CUDA graph is held against the twin's. Share of the matrix-multiply peak "
        "measured in the same process, 2:4 products counted as dense ones."
    )
    if "The host's own" in extra:
        caption += (
            " The host's own microseconds of a call are Python's and the launches', the device not waited for; where "
            "they are as many as the call's, it is bound by launches, and its graph shows what the device needs."
        )
    return Table(caption, (*columns, *extra), tuple(cells), 3)


def memory_table(rows: Sequence[Measurement]) -> Table:
    """Bytes of a training step by part."""
    cells = tuple(
        (row.shape, f"{row.tokens:,}", row.name, *(_mib(row.memory[part]) for part in (*_PARTS, "peak")))
        for row in rows
        if row.memory
    )
    caption = (
        "MiB of one eager training step. Activations are what is kept between forward and backward, logits what head "
        "and loss take at their worst beyond that; a CPU's allocator tells neither logits nor peak."
    )
    return Table(
        caption, ("Shape", "Tokens", "Contender", *(p.capitalize() for p in (*_PARTS, "peak"))), cells, 3
    )


@style.styled
def speed_figure(rows: Sequence[Measurement]) -> Figure:
    """The ratio to the twin of each contender, one panel a shape, percentiles as bars."""
    places = sorted({(row.shape, row.tokens) for row in rows}, key=_place)
    names = list(dict.fromkeys(row.name for row in rows))
    figure = style.new_figure(2.6 + 2.4 * len(places), 0.9 + 0.27 * len(names))
    axes = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    for axis, place in zip(axes, places, strict=True):
        for row in (r for r in rows if (r.shape, r.tokens) == place):
            look = style.look(0 if row.contender.startswith("ELAS") else 1 if _TWIN in row.contender else 4)
            middle = row.ratio["median"]
            reach = [[middle - row.ratio["p20"]], [row.ratio["p80"] - middle]]
            axis.errorbar(
                middle,
                names.index(row.name),
                xerr=reach,
                fmt=look.marker,
                color=look.color,
                alpha=1.0 if middle >= 1 else 0.75,
            )
        axis.axvline(1.0, color=style.GREY, linewidth=1.0, linestyle="--")
        axis.set_title(f"{place[0]}, {place[1]:,} tokens", fontsize=10)
        axis.set_xlim(left=0)
        style.plain_numbers(axis, "x")
    style.level_axis(axes[0], "y", range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("Speed against the dense low-rank twin (above 1 is faster)", fontsize=10)
    return figure


@style.styled
def memory_figure(rows: Sequence[Measurement]) -> Figure:
    """Stacked bars: where the memory of a training step goes."""
    held = [row for row in rows if row.memory]
    figure = style.new_figure(7.2, 0.9 + 0.27 * len(held))
    axis = figure.subplots()
    left = [0.0] * len(held)
    for index, part in enumerate(_PARTS):
        widths = [(row.memory or {}).get(part) or 0 for row in held]
        axis.barh(
            range(len(held)),
            [w / _MIB for w in widths],
            left=left,
            color=style.look(index).color,
            label=part,
        )
        left = [before + w / _MIB for before, w in zip(left, widths, strict=True)]
    style.level_axis(
        axis, "y", range(len(held)), [f"{r.shape}, {r.tokens:,} tokens: {r.contender}" for r in held]
    )
    axis.set_ylim(len(held) - 0.5, -0.5)
    axis.set_xlabel("MiB of one eager training step")
    style.plain_numbers(axis, "x")
    figure.legend(loc="outside upper center", ncols=len(_PARTS), frameon=False)
    return figure


def _mib(size: int | None) -> str:
    return "not measured" if size is None else f"{size / _MIB:,.0f}"


def _place(key: tuple[str, int]) -> tuple[float, int]:
    """Shapes by their size: 60m before 1b."""
    shape, tokens = key
    size = shape.rstrip("mb")
    return (float(size) * (1000 if shape.endswith("b") else 1) if size.isdigit() else 0.0, tokens)


def verdict(rows: Sequence[Measurement]) -> list[str]:
    """For each kind and shape, in words: ELAS's fastest way beside its dense twin, without CUDA graphs and with."""
    said = []
    for place in sorted({(row.shape, row.tokens) for row in rows}, key=_place):
        for graphs in (False, True):
            own = [
                row
                for row in rows
                if (row.shape, row.tokens) == place
                and row.contender.startswith("ELAS")
                and row.is_graph == graphs
            ]
            if own:
                said.append(_sentence(place, max(own, key=lambda row: row.ratio["median"])))
    return said


def _sentence(place: tuple[str, int], best: Measurement) -> str:
    middle = best.ratio["median"]
    clear = best.ratio["p20"] > 1 or best.ratio["p80"] < 1
    word = ("faster than" if middle > 1 else "slower than") if clear else "as fast as, within the spread,"
    twin = "its dense twin's graph" if best.is_graph else "its dense twin"
    launches = "; it is bound by launches" if best.launch_bound else ""
    return (
        f"{place[0]}, {place[1]:,} tokens: ELAS's fastest way ({best.name}) is {word} {twin}, "
        f"{number(middle)} times its speed{launches}."
    )


def write_benchmark_report(folder: Path, out: Path) -> Path:
    """Draw and write ``report.html`` and ``plots/`` from the records below a folder.

    Args:
        folder: Where the records are.
        out: Where the page goes.

    Returns:
        The path of the page.

    Raises:
        UserError: No record, or one that cannot be read.
    """
    records = list(read_records(folder))
    plots = out / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    sections = []
    for path, record in records:
        rows = list(measurements(record))
        absent = _absent(record["cases"])
        for kind, title in KINDS.items():
            own = [row for row in rows if row.kind == kind]
            if not own:
                continue
            name = f"{path.relative_to(folder).with_suffix('')}-{kind}".replace("/", "-").replace(" ", "-")
            figures = [
                _figure(speed_figure(part), plots / f"{name}-speed{word}", f"{title}: speed")
                for word, part in _in_figures(own)
            ]
            if any(row.memory for row in own):
                figures.append(_figure(memory_figure(own), plots / f"{name}-memory", f"{title}: memory"))
            sections.append(
                {
                    "title": title,
                    "device": record["device"],
                    "versions": ", ".join(f"{key} {value}" for key, value in record["versions"].items()),
                    "command": record["command"],
                    "record": str(path),
                    "verdict": verdict(own),
                    "figures": figures,
                    "speed": table_html(speed_table(own), f"{title}: speed"),
                    "memory": table_html(memory_table(own), f"{title}: memory")
                    if any(row.memory for row in own)
                    else None,
                    "absent": absent,
                }
            )
    page = out / "report.html"
    page.write_text(
        render("benchmarks.html.j2", name="Benchmarks", question=QUESTION, sections=sections),
        encoding="utf-8",
    )
    return page


def _in_figures(rows: Sequence[Measurement]) -> list[tuple[str, list[Measurement]]]:
    """What one figure shows, with an ending for its name: everything, or one number of tokens where that is much."""
    if len({(row.shape, row.tokens) for row in rows}) <= _PANELS:
        return [("", list(rows))]
    counts = sorted({row.tokens for row in rows})
    return [(f"-{count}-tokens", [row for row in rows if row.tokens == count]) for count in counts]


def _absent(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Who could not run, or not in some mode, and why."""
    found: dict[str, str] = {}
    for case in cases:
        found |= {name: row["absent"] for name, row in case["contenders"].items() if "absent" in row}
        found |= {f"{row['contender']}, {row['mode']}": row["reason"] for row in case.get("absent", ())}
    return sorted(found.items())


def _figure(figure: Figure, stem: Path, title: str) -> dict[str, str]:
    _, svg = style.save(figure, stem)
    return {"title": title, "source": data_uri(svg)}
