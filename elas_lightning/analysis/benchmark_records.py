"""Benchmark records, read: what was measured where, and whether launches or the device bound it.

Reads what ``benchmarks/*.py`` wrote and nothing else. Ratios were taken within rounds of one process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elas_lightning.errors import UserError

# Those whose records hold measurements.
BENCHMARKS = ("ffn", "train_step", "prefill")
KINDS = {
    "ffn forward": "Feed-forward network, forward",
    "ffn forward_backward": "Feed-forward network, forward and backward",
    "train_step": "Whole training step",
    "prefill": "Prefill",
}
TWIN = "low-rank ReLU²"
FULL = "full-rank SwiGLU"
# A call is bound by its launches where the host alone needs this share of its time, or where without them, replayed as
# a CUDA graph, it needs less than that share of it.
_LAUNCH_BOUND = 0.9
_REPLAYED_BOUND = 0.8
_GRAPH = ", graph"
# Where a record holds the bytes that a mode keeps.
_KEPT = {"eager": "kept_bytes", "compiled": "kept_bytes_compiled"}


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
        replayed: Seconds of the same call as a CUDA graph, where there is one.
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
    replayed: float | None
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
        """Whether the host's launches take the better part of the call: the device waits for them."""
        if self.is_graph:
            return False
        by_host = self.host is not None and self.host >= _LAUNCH_BOUND * self.seconds
        return by_host or (self.replayed is not None and self.replayed < _REPLAYED_BOUND * self.seconds)

    @property
    def is_elas(self) -> bool:
        """Whether it is a 2:4 model."""
        return self.contender.startswith("ELAS")

    @property
    def is_measure(self) -> bool:
        """Whether it is what the others are held against, in its mode."""
        return self.contender == TWIN and set(self.ratio.values()) == {1.0}

    @property
    def place(self) -> tuple[str, int]:
        """Shape and tokens."""
        return self.shape, self.tokens


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
        if isinstance(record, dict) and record.get("benchmark") in BENCHMARKS:
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
            rows = list(_rows(record["benchmark"], case))
            seconds = {(row["kind"], row["contender"], row["mode"]): row["seconds"]["median"] for row in rows}
            for row in rows:
                about = case["contenders"][row["contender"]]
                kept = _KEPT.get(row["mode"].removesuffix(_GRAPH), "")
                yield Measurement(
                    device=record["device"],
                    gpu=record["device_type"] == "cuda",
                    shape=case["shape"],
                    tokens=case.get("tokens") or case["batch"] * case["sequence"],
                    seconds=row["seconds"]["median"],
                    host=row.get("host_seconds"),
                    replayed=seconds.get((row["kind"], row["contender"], row["mode"] + _GRAPH)),
                    share=row["share_of_matmul_peak"],
                    kept=about.get(kept),
                    kept_ratio=about.get(kept.replace("bytes", "against"), {}).get(TWIN),
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
                yield {
                    **row,
                    "kind": benchmark,
                    "contender": name,
                    "mode": case["mode"],
                    "ratio": row["speed_against"][TWIN],
                }
        return
    for row in case["measured"]:
        kind = f"ffn {row['kind']}" if benchmark == "ffn" else benchmark
        yield {**row, "kind": kind, "ratio": row["speed_against"][TWIN]}


def side_by_side(rows: Sequence[Measurement]) -> list[Measurement]:
    """Place by place the modes of each contender together, a graph beside what it is a graph of."""
    contenders = list(dict.fromkeys(row.contender for row in rows))
    return sorted(rows, key=lambda row: (place_order(row.place), contenders.index(row.contender)))


def fastest(rows: Sequence[Measurement]) -> Measurement | None:
    """ELAS's fastest way among some."""
    return max((row for row in rows if row.is_elas), key=lambda row: row.ratio["median"], default=None)


def backend_of(row: Measurement) -> str:
    """Which backend ran a 2:4 model, as records name contenders: model, backend, storage."""
    return row.contender.split(", ")[1]


def place_order(key: tuple[str, int]) -> tuple[float, int]:
    """Shapes by their size: 60m before 1b."""
    shape, tokens = key
    size = shape.rstrip("mb")
    return (float(size) * (1000 if shape.endswith("b") else 1) if size.isdigit() else 0.0, tokens)
