"""The bytes of a training step as the runs' result files account for them, method by method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.paper.load import Paper, method_names
from elas_lightning.analysis.paper.table import methods
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import number

_SHAPE = "1b"  # the size of the paper whose saving is told in sentences
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "total")


def accounts(results: SweepResults) -> dict[str, Mapping[str, Any]]:
    """The account of each method, from one of its runs: it is worked out from the configuration, not measured."""
    found = {}
    for method, point in methods(results).items():
        for run in point.runs:
            account = ((results.results.get(run) or {}).get("metrics") or {}).get("account")
            if isinstance(account, Mapping):
                found[method] = account
                break
    return found


def memory_table(results: SweepResults) -> Table | None:
    """Bytes by what they are for; None where no result file has an account."""
    found = accounts(results)
    if not found:
        return None
    names = [part for part in _PARTS if any(part in account for account in found.values())]
    rows = tuple(
        (method, *(_megabytes(found.get(method, {}).get(part)) for part in names)) for method in method_names(results)
    )
    columns = ("Method", *(f"{name.capitalize()} (MB)" for name in names))
    caption = (
        "Bytes of one training step at the runs' own micro-batch, from the configuration alone; a blank row has no "
        "run with an account. What a device really allocated is the peak memory of the table of methods."
    )
    return Table(caption, columns, rows, 1)


def _megabytes(value: Any) -> str:
    return number(float(value) * 1e-6) if isinstance(value, int | float) else ""


def paper_sizes(paper: Paper) -> list[Mapping[str, Any]]:
    """The rows of ``benchmarks/memory_account.py``'s record; empty without one."""
    for record in paper.records.values():
        if record.get("benchmark") == "memory_account":
            return list(record["rows"])
    return []


def sizes_table(paper: Paper) -> Table | None:
    """What a step keeps and takes at the paper's sizes, with and without checkpointing; None without a record."""
    rows = paper_sizes(paper)
    places = list(dict.fromkeys((row["batch"], row["sequence"], row["checkpointing"]) for row in rows))
    kept = {(r["shape"], r["contender"], r["batch"], r["sequence"], r["checkpointing"]): r["bytes"] for r in rows}
    cells = tuple(
        (shape, contender, *(f"{kept[shape, contender, *p]['activations'] / 1e9:.2f}" for p in places))
        for shape, contender in dict.fromkeys((row["shape"], row["contender"]) for row in rows)
    )
    if not cells:
        return None
    headings = (f"{batch} × {length}{', checkpointed' * (how == 'block')}" for batch, length, how in places)
    caption = (
        "Gigabytes kept between forward and backward by sequences × length, AdamW and bfloat16 autocast on a GPU, with "
        "and without checkpointing of whole blocks; worked out from the configuration (benchmarks/memory_account.py)."
    )
    return Table(caption, ("Size", "Method", *headings), cells, 2)


def memory_sentences(paper: Paper) -> list[str]:
    """Whether the saving survives checkpointing and long sequences, at one of the paper's sizes."""
    found = {
        (row["contender"], row["batch"], row["sequence"], row["checkpointing"]): row["bytes"]
        for row in paper_sizes(paper)
        if row["shape"] == _SHAPE
    }
    if not found:
        return []
    *_, (_, batch, length, _) = ((n, b, t, c) for n, b, t, c in found if t == 256)
    long_batch, long_length = max(((b, t) for _, b, t, _ in found), key=lambda place: place[1])

    def kept(name: str, b: int, t: int, how: str) -> float:
        return float(found[name, b, t, how]["activations"])

    def saving(name: str, b: int, t: int, how: str) -> str:
        return f"{100 * (1 - kept(name, b, t, how) / kept('low-rank ReLU²', b, t, how)):.0f} %"

    said = []
    for storage in ("packed", "recompute"):
        name = f"ELAS, {storage}"
        said.append(
            f"At {_SHAPE.upper()} with {batch} sequences of {length}, ELAS with its FFN {storage} keeps "
            f"{saving(name, batch, length, 'none')} fewer bytes than its dense twin without checkpointing and "
            f"{saving(name, batch, length, 'block')} fewer with every block checkpointed; with {long_batch} sequences "
            f"of {long_length} it is {saving(name, long_batch, long_length, 'none')} and "
            f"{saving(name, long_batch, long_length, 'block')}."
        )
    said.append(
        "The dense twin with its FFN recomputed keeps "
        f"{saving('low-rank ReLU², recompute', batch, length, 'none')} less, without any sparsity."
    )
    return said
