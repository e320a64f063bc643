"""What the benchmarks share: contenders that take turns, what the machine is and can do, and records on disk.

Contenders take turns, one call each a round, so that other load on the machine and its clock's moods meet all of
them alike; ratios are taken within rounds.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from elas_lightning.training.energy import EnergyMeter

Call = Callable[[], object]

# Long enough that reading the clock and a launch's jitter do not show.
_SHORTEST_TURN_SECONDS = {"cuda": 0.02, "cpu": 0.05}
# The counter moves ten times a second.
_ENERGY_SECONDS = 1.5
_PACKAGES = ("elas-lightning", "torch", "triton", "transformers", "numpy")


def spread(values: list[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentiles."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": p20, "p80": p80}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    calls: dict[str, Call], device: torch.device, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of one call of every contender in every round.

    A turn repeats its call until it is long enough to be timed; the order turns too, so that nobody always goes
    first.

    Args:
        calls: By name; what they return is thrown away.
        device: Waited for at both ends of a turn.
        rounds: Measured rounds.
        warmup: Rounds before those, after the first call that compiles and the one that is timed for its length.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        once = max(time.perf_counter() - start, 1e-7)
        repeats[name] = max(1, min(200, round(_SHORTEST_TURN_SECONDS[device.type] / once)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(warmup + rounds):
        for position in range(len(names)):
            name = names[(turn + position) % len(names)]
            start = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            wait(device)
            if turn >= warmup:
                seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def ratios(baseline: list[float], own: list[float]) -> dict[str, float]:
    """How many times as fast as a baseline, round by round."""
    return spread([theirs / mine for theirs, mine in zip(baseline, own, strict=True)])


def joules(call: Call, device: torch.device) -> float | None:
    """Energy of one call, from the board's counter over more than a second of calls; None where there is no counter."""
    meter = EnergyMeter(device)
    if meter.read() is None:
        return None
    end, calls = time.perf_counter() + _ENERGY_SECONDS, 0
    meter.read()
    while time.perf_counter() < end:
        call()
        wait(device)
        calls += 1
    used = meter.read()
    return None if used is None else used / calls


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a large square matrix product reaches here: the best of ten, the yardstick for shares of peak."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = measure({"product": lambda: a @ b}, device, rounds=10)["product"]
    return float(2 * size**3 / min(seconds))


def processor() -> str:
    """The CPU's name and features, as well as the system tells them."""
    capability = torch.backends.cpu.get_cpu_capability()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {capability}, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {name: version for name, version in found.items() if version}


class Record:
    """A benchmark's result file: written anew after every case, so that what was measured is never lost.

    Args:
        benchmark: Which benchmark it is.
        device: What it ran on.
        dtype: Of the products.
        path: Where it goes; ``None`` keeps it in memory.
    """

    def __init__(self, benchmark: str, device: torch.device, dtype: torch.dtype, path: Path | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "command": shlex.join(["python", *sys.argv]),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
            "device_type": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "versions": _versions(),
            "matmul_peak_flops": matmul_peak(device, dtype),
            "cases": [],
        }

    def add(self, case: dict[str, Any]) -> None:
        """Take in a case and write the file, whole or not at all."""
        self.content["cases"].append(case)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
            partial.replace(self.path)
