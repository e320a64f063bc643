"""What ``backend: auto`` knows: how long each path of the FFN took on a device, from records of measurements.

``ops/measurements/README.md`` has the format. Nothing is interpolated: a shape takes the fastest path of the
nearest measured one, or none if that is not near.
"""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from elas_lightning.errors import UserError
from elas_lightning.files import cache_folder

Direction = Literal["forward", "training"]
# What is fastest changes with the sizes; a measurement says nothing where one of them differs by a larger factor.
_NEAR = 4.0
# What a record calls the attributes of a case, in their order.
_FIELDS = ("rank", "d_ff", "tokens", "dtype", "sparsity", "direction", "compiled")


@dataclass(frozen=True)
class Case:
    """One FFN, as far as its speed goes.

    Attributes:
        rank: Of ``z``.
        features: d_ff.
        tokens: How many there are.
        dtype: Of the arithmetic, without ``torch.``.
        sparsity: ``2:4`` or None.
        direction: ``training`` where gradients are wanted, else ``forward``.
        compiled: Whether it is part of what ``torch.compile`` made, which makes plain PyTorch faster.
    """

    rank: int
    features: int
    tokens: int
    dtype: str
    sparsity: str | None
    direction: Direction
    compiled: bool = False

    def __str__(self) -> str:
        what = "dense" if self.sparsity is None else self.sparsity
        how = f"{self.direction}, compiled" if self.compiled else self.direction
        return f"r {self.rank}, d_ff {self.features}, {self.tokens} tokens, {self.dtype}, {what}, {how}"

    @property
    def kind(self) -> tuple[object, ...]:
        """What a measurement must share to say anything."""
        return self.dtype, self.sparsity, self.direction, self.compiled

    def distance(self, other: Case) -> float:
        """The largest factor between the sizes of two cases; infinite where they differ in kind."""
        if self.kind != other.kind:
            return math.inf
        mine, theirs = (self.rank, self.features, self.tokens), (other.rank, other.features, other.tokens)
        return max(max(a, b) / max(1, min(a, b)) for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True)
class Measurement:
    """A case with the seconds of every path, ``backend storage``, and the file that says so."""

    case: Case
    seconds: dict[str, float]
    file: str


def bucket(tokens: int) -> int:
    """The next power of two: a choice is made for it, so that not every length makes its own."""
    power = 1
    while power < tokens:
        power *= 2
    return power


def device_name(device: torch.device) -> str:
    """The model of a GPU or processor, as records name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


@cache
def _processor_name() -> str:
    """Asked at every call of an FFN with backend ``auto``."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def user_folder() -> Path:
    """Where ``elas bench --tune`` writes: ``$ELAS_MEASUREMENTS``, else a folder in the cache."""
    if chosen := os.environ.get("ELAS_MEASUREMENTS"):
        return Path(chosen).expanduser()
    return cache_folder() / "measurements"


@cache
def measurements(device: str) -> tuple[tuple[Measurement, ...], ...]:
    """What is recorded of a device: the user's records, then those shipped. Read once in a process.

    Args:
        device: As ``device_name`` says it.

    Raises:
        UserError: A file that is no record.
    """
    folders = (user_folder(), Path(__file__).with_name("measurements"))
    return tuple(tuple(m for path in sorted(folder.glob("*.json")) for m in _read(path, device)) for folder in folders)


def _read(path: Path, device: str) -> list[Measurement]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if record["device"] != device:
            return []
        found = []
        for case in record["cases"]:
            known = Case(*(case[field] for field in _FIELDS))
            seconds = {name: float(value) for name, value in case["seconds"].items()}
            found.append(Measurement(known, seconds, str(path)))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a record of measurements ({type(error).__name__}: {error}): "
            "delete it, or make it anew with `elas bench --tune`"
        ) from error


def nearest(device: str, case: Case) -> Measurement | None:
    """The nearest measured case, the user's own before those shipped, None if none is near."""
    for known in measurements(device):
        if known:
            found = min(known, key=lambda m: m.case.distance(case))
            if found.case.distance(case) <= _NEAR:
                return replace(found, seconds=dict(sorted(found.seconds.items(), key=lambda item: item[1])))
    return None
