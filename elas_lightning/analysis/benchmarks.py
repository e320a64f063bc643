"""Benchmark records as tables, plots and a page: how fast each way is beside the dense twin, and what it keeps.

Ratios were taken within rounds of one process; absolute times are shown for GPUs alone, since a CPU's say more about
its neighbours than about the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.benchmark_records import (
    KINDS,
    TWIN,
    Measurement,
    fastest,
    measurements,
    place_order,
    read_records,
    side_by_side,
)
from elas_lightning.analysis.benchmark_summary import lines, summary_figure, summary_table
from elas_lightning.analysis.page import data_uri, render, table_html
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import number
from elas_lightning.errors import UserError

QUESTION = "How fast is 2:4 sparsity beside its dense low-rank twin, and what does it keep in memory?"
# More panels than these are no longer read side by side.
_PANELS = 5
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits")
# A figure wider than this can be read in the column of text no more.
_COLUMN_INCHES = 9
_MIB = 2**20


def speed_table(rows: Sequence[Measurement]) -> Table:
    """Every measurement of one kind: ratio, share of peak, time on a GPU, bytes kept."""
    rows, extra = side_by_side(rows), {}
    if any(row.launch_bound for row in rows):
        extra["Bound by"] = ["launches" if row.launch_bound else "" for row in rows]
    extra["Share of peak"] = [f"{row.share:.0%}" for row in rows]
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
    columns = ("Shape", "Tokens", "Contender", "Times the dense twin", "20 to 80 %")
    cells = [
        (
            row.shape.upper(),
            f"{row.tokens:,}",
            row.name,
            f"{row.ratio['median']:.2f}",
            f"{row.ratio['p20']:.2f} to {row.ratio['p80']:.2f}",
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
            " The host's own microseconds of a call are Python's and the launches', the device not waited for. A call "
            "is bound by launches where they are nine tenths of its own or more, or where its graph needs less than "
            "eight tenths: a faster kernel changes little there, and the graph shows what the device needs."
        )
    if any(row.kind == "train_step" for row in rows):
        caption += (
            " Each contender's training step took turns with the baselines' in a run of its own: the ratio is of that "
            "run, and the microseconds of two rows are not."
        )
    return Table(caption, (*columns, *extra), tuple(cells), 3)


def memory_table(rows: Sequence[Measurement]) -> Table:
    """Bytes of a training step by part."""
    parts = (*_PARTS, "peak")
    cells = tuple(
        (row.shape.upper(), f"{row.tokens:,}", row.contender, *(_mib(row.memory.get(part)) for part in parts))
        for row in rows
        if row.memory
    )
    caption = (
        "MiB of one eager training step. Activations are what is kept between forward and backward, logits what head "
        "and loss take at their worst beyond that; a CPU's allocator tells neither logits nor peak."
    )
    return Table(caption, ("Shape", "Tokens", "Contender", *(part.capitalize() for part in parts)), cells, 3)


@style.styled
def speed_figure(rows: Sequence[Measurement]) -> Figure:
    """The ratio to the twin of each contender, one panel a shape, percentiles as bars."""
    places = sorted({row.place for row in rows}, key=place_order)
    contenders = list(dict.fromkeys(row.contender for row in rows))
    together = sorted(rows, key=lambda row: contenders.index(row.contender))
    names = list(dict.fromkeys(row.name for row in together))
    figure = style.new_figure(2.6 + 2.4 * len(places), 0.9 + 0.27 * len(names))
    axes = figure.subplots(1, len(places), sharex=True, sharey=True, squeeze=False)[0]
    for axis, place in zip(axes, places, strict=True):
        for row in (r for r in rows if r.place == place):
            look = style.look(0 if row.is_elas else 1 if TWIN in row.contender else 4)
            middle, height = row.ratio["median"], names.index(row.name)
            reach = [[middle - row.ratio["p20"]], [row.ratio["p80"] - middle]]
            face = "white" if row.launch_bound else look.color
            axis.errorbar(middle, height, xerr=reach, fmt=look.marker, color=look.color, markerfacecolor=face)
            axis.annotate(
                f"{middle:.2f}",
                (max(middle, row.ratio["p80"]), height),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.axvline(1.0, color=style.GREY, linewidth=1.0, linestyle="--")
        axis.set_title(f"{place[0].upper()}, {place[1]:,} tokens", fontsize=10)
        axis.set_xlim(0, 1.2 * max(row.ratio["p80"] for row in rows))
        style.plain_numbers(axis, "x")
    style.level_axis(axes[0], "y", range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    hollow = "; hollow: bound by launches" if any(row.launch_bound for row in rows) else ""
    figure.supxlabel(f"Speed against the dense low-rank twin (above 1 is faster{hollow})", fontsize=10)
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
        axis.barh(range(len(held)), [w / _MIB for w in widths], left=left, color=style.look(index).color, label=part)
        left = [before + w / _MIB for before, w in zip(left, widths, strict=True)]
    style.level_axis(
        axis, "y", range(len(held)), [f"{r.shape.upper()}, {r.tokens:,} tokens: {r.contender}" for r in held]
    )
    axis.set_ylim(len(held) - 0.5, -0.5)
    axis.set_xlabel("MiB of one eager training step")
    style.plain_numbers(axis, "x")
    figure.legend(loc="outside upper center", ncols=len(_PARTS), frameon=False)
    return figure


def _mib(size: int | None) -> str:
    return "not measured" if size is None else f"{size / _MIB:,.0f}"


def verdict(rows: Sequence[Measurement]) -> list[str]:
    """For each kind and shape, in words: ELAS's fastest way beside its dense twin, without CUDA graphs and with."""
    said = []
    for place in sorted({row.place for row in rows}, key=place_order):
        for graphs in (False, True):
            own = [row for row in rows if row.place == place and row.is_graph == graphs]
            best = fastest(own)
            if best:
                twin_bound = any(row.is_measure and row.launch_bound for row in own)
                said.append(_sentence(best, twin_bound, _faster_dense(own)))
    return said


def _faster_dense(rows: Sequence[Measurement]) -> str:
    """The dense low-rank model's own fastest way where that is not the one all are held against: of ELAS the best of
    several ways is told, and part of what it gains may be the kernels' and not the sparsity's."""
    dense = [row for row in rows if row.contender.startswith(TWIN)]
    best = max(dense, key=lambda row: row.ratio["median"], default=None)
    if best is None or best.ratio["p20"] <= 1:
        return ""
    return f"; the dense model's own fastest way ({best.name}) reaches {number(best.ratio['median'])} times that speed"


def _sentence(best: Measurement, twin_bound: bool, faster_dense: str) -> str:
    middle = best.ratio["median"]
    word = "not told apart, within the spread, from"
    if best.ratio["p20"] > 1 or best.ratio["p80"] < 1:
        word = "faster than" if middle > 1 else "slower than"
    twin = "its dense twin's graph" if best.is_graph else "its dense twin"
    bound = [who for who, is_so in (("it", best.launch_bound), ("the twin", twin_bound)) if is_so]
    are = "are" if len(bound) > 1 else "is"
    launches = f"; {' and '.join(bound)} {are} bound by launches" if bound else ""
    return (
        f"{best.shape.upper()}, {best.tokens:,} tokens: ELAS's fastest way ({best.name}) is {word} {twin}, "
        f"{number(middle)} times its speed{launches}{faster_dense}."
    )


def write_benchmark_report(folder: Path, out: Path) -> Path:
    """Draw and write ``report.html`` and ``plots/`` from the records below a folder.

    Args:
        folder: Where the records are.
        out: Where the page goes.

    Returns:
        The path of the page.

    Raises:
        UserError: No record, one that cannot be read, or the page cannot be written.
    """
    records = read_records(folder)
    plots = out / "plots"
    try:
        plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}): give another folder") from error
    sections = []
    by_device: dict[str, list[Measurement]] = {}
    for path, record in records:
        rows = list(measurements(record))
        by_device.setdefault(record["device"], []).extend(rows)
        for kind in KINDS:
            if own := [row for row in rows if row.kind == kind]:
                name = f"{path.relative_to(folder).with_suffix('')}-{kind}".replace("/", "-").replace(" ", "-")
                about = {"record": str(path), "absent": _absent(record["cases"], kind)}
                sections.append({**_section(record, kind, own, plots / name), **about})
    overviews: list[dict[str, Any]] = []
    for device, rows in by_device.items():
        if found := lines(rows):
            figure = summary_figure(found)
            stem, title = plots / f"overview-{len(overviews) + 1}", "ELAS beside its dense twin"
            table = table_html(summary_table(found), f"{device}: {title}")
            overviews.append({"device": device, "figure": _figure(figure, stem, title), "table": table})
    page = out / "report.html"
    content = {"name": "Benchmarks", "question": QUESTION, "overviews": overviews, "sections": sections}
    page.write_text(render("benchmarks.html.j2", **content), encoding="utf-8")
    return page


def _section(record: Mapping[str, Any], kind: str, rows: list[Measurement], stem: Path) -> dict[str, Any]:
    """One kind of call in one record: its figures, drawn beside ``stem``, its tables and where it was measured."""
    title, with_memory = KINDS[kind], any(row.memory for row in rows)
    figures = [
        _figure(speed_figure(part), stem.with_name(f"{stem.name}-speed{word}"), f"{title}: speed")
        for word, part in _in_figures(rows)
    ]
    if with_memory:
        figures.append(_figure(memory_figure(rows), stem.with_name(f"{stem.name}-memory"), f"{title}: memory"))
    return {
        "title": title,
        "device": record["device"],
        "versions": ", ".join(f"{key} {value}" for key, value in record["versions"].items()),
        "command": record["command"],
        "remark": record.get("remark"),
        "verdict": verdict(rows),
        "figures": figures,
        "speed": table_html(speed_table(rows), f"{title}: speed"),
        "memory": table_html(memory_table(rows), f"{title}: memory") if with_memory else None,
    }


def _in_figures(rows: Sequence[Measurement]) -> list[tuple[str, list[Measurement]]]:
    """What one figure shows, with an ending for its name: everything, or one number of tokens where that is much."""
    if len({(row.shape, row.tokens) for row in rows}) <= _PANELS:
        return [("", list(rows))]
    counts = sorted({row.tokens for row in rows})
    return [(f"-{count}-tokens", [row for row in rows if row.tokens == count]) for count in counts]


def _absent(cases: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[str, str]]:
    """Who could not run one kind of call, or not in some mode, and why."""
    found: dict[str, str] = {}
    for case in cases:
        found |= {name: row["absent"] for name, row in case["contenders"].items() if "absent" in row}
        found |= {
            f"{row['contender']}, {row['mode']}": row["reason"]
            for row in case.get("absent", ())
            if "kind" not in row or f"ffn {row['kind']}" == kind
        }
    return sorted(found.items())


def _figure(figure: Figure, stem: Path, title: str) -> dict[str, Any]:
    _, svg = style.save(figure, stem)
    return {"title": title, "source": data_uri(svg), "wide": figure.get_figwidth() > _COLUMN_INCHES}
