"""Speed measured side by side in one process, device by device: ELAS beside its dense low-rank twin, and full rank."""

from __future__ import annotations

from collections.abc import Iterator

from elas_lightning.analysis.benchmark_records import BENCHMARKS, Measurement, measurements
from elas_lightning.analysis.benchmark_summary import SHORT, Line, lines
from elas_lightning.analysis.paper.load import Paper
from elas_lightning.analysis.wording import listing
from elas_lightning.errors import UserError


def by_device(paper: Paper) -> dict[str, list[Line]]:
    """What the records say of each device, GPUs first; records of earlier versions are left out."""
    rows: dict[str, list[Measurement]] = {}
    for _, measured in _read(paper):
        for row in measured or ():
            rows.setdefault(row.device, []).append(row)
    devices = sorted(rows, key=lambda device: not rows[device][0].gpu)
    return {device: found for device in devices if (found := lines(rows[device]))}


def _read(paper: Paper) -> Iterator[tuple[str, list[Measurement] | None]]:
    """Each benchmark's record with what it holds; None for one of an earlier version."""
    for name, record in paper.records.items():
        if record.get("benchmark") in BENCHMARKS:
            try:
                yield name, list(measurements(record))
            except UserError:
                yield name, None


def speed_answers(paper: Paper) -> Iterator[tuple[bool, str]]:
    """Sentences on speed, and of each whether it says something that was measured."""
    devices = by_device(paper)
    if not devices:
        yield False, "No record with ratios lies under benchmarks/results/: elas bench --json FILE makes one."
    for device, found in devices.items():
        for line in found:
            yield True, _sentence(device, line)
    if unread := [name for name, found in _read(paper) if found is None]:
        yield False, f"Of an earlier version, to be measured again: {listing(unread)}."
    if not devices:
        return
    on_gpu = [line for found in devices.values() for line in found if line.on_gpu]
    if not on_gpu:
        yield (
            False,
            "There is no record from a GPU. On a CPU the 2:4 step is work and saves none, so these ratios say nothing "
            "about sparse tensor cores; whether 2:4 pays on a low-rank FFN is not answered here yet.",
        )
    kinds = {line.kind for line in on_gpu or [line for found in devices.values() for line in found]}
    if lacking := [
        what for what, kind in (("of training", "train_step"), ("of prefill", "prefill")) if kind not in kinds
    ]:
        yield False, f"Not measured yet: the speed {listing(lacking)}."


def _sentence(device: str, line: Line) -> str:
    """One kind of call: ELAS's fastest way at each shape, with what bounds it and full rank's speed where it ran."""
    ratios = [
        f"{row.ratio['median']:.2f} ({row.ratio['p20']:.2f} to {row.ratio['p80']:.2f}) at {shape.upper()}"
        for shape, row in line.best.items()
    ]
    launches = ", launches out of the way," if line.replayed else ""
    said = (
        f"{SHORT[line.kind]} with {line.tokens:,} tokens{launches} on {device}: ELAS's fastest way runs at "
        f"{listing(ratios)} times the speed of its dense twin"
    )
    if line.bound:
        bound = [shape.upper() for shape in line.best if shape in line.bound]
        said += f", where launches bound one of the two at {listing(bound)}"
    if line.full:
        whole = [f"{line.full[shape]:.2f} at {shape.upper()}" for shape in line.best if shape in line.full]
        said += f"; full-rank SwiGLU runs at {listing(whole)} times that speed"
    return f"{said}."
