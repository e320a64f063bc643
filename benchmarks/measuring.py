"""What the benchmarks share: contenders that take turns, what the machine is and can do, and records on disk.

Contenders take turns, one call each a round, so that other load on the machine and its clock's moods meet all of
them alike; ratios are taken within rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from elas_lightning.errors import UserError
from elas_lightning.files import make_room, write_whole
from elas_lightning.ops.measured import device_name
from elas_lightning.training.energy import EnergyMeter

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

# Long enough that reading the clock and a launch's jitter do not show.
_SHORTEST_TURN_SECONDS = {"cuda": 0.01, "cpu": 0.05}
_HOST_CALLS = 7
# The counter moves ten times a second.
_ENERGY_SECONDS = 1.5
_PACKAGES = ("elas-lightning", "torch", "triton", "transformers", "numpy")


def spread(values: list[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentiles."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": p20, "p80": p80}


def usual_dtype(device: torch.device) -> torch.dtype:
    """What products are made in: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """What nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def rounds_of(text: str) -> int:
    """A number of measured rounds on a command line."""
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{text} is too few: give 2 or more, since percentiles need a spread")
    return number


def add_options(parser: argparse.ArgumentParser, rounds: int, in_turns: bool = True) -> argparse.Namespace:
    """What the benchmarks' command lines have in common, added and read.

    Args:
        parser: With the options that are its own, ``--compile`` among them.
        rounds: Measured rounds where none are asked for.
        in_turns: Whether the modes are measured beside each other in one run, and not one mode a run.
    """
    cuda = torch.cuda.is_available()
    parser.add_argument("--only", nargs="+", help="contenders whose names contain one of these; the twin runs anyway")
    if in_turns:
        parser.add_argument("--without-eager", action="store_true", help="leave out the eager forms")
        parser.add_argument(
            "--cuda-graph", action="store_true", help="time replays of CUDA graphs, too: compiled, else eager"
        )
    parser.add_argument("--rounds", type=rounds_of, default=rounds, help="measured rounds")
    parser.add_argument("--energy", action="store_true", help="measure joules, which takes 1.5 s a figure")
    parser.add_argument(
        "--rehearse", action="store_true", help="run each call once and time none: it fills compilers' caches"
    )
    parser.add_argument("--device", type=usable_device, default="cuda" if cuda else "cpu")
    parser.add_argument("--json", type=Path, help="where to write the record, after every case")
    options = parser.parse_args()
    if in_turns and options.without_eager and not options.compile:
        parser.error("--without-eager leaves nothing to time: add --compile")
    if in_turns and options.cuda_graph and not options.device.startswith("cuda"):
        parser.error(f"--cuda-graph needs a GPU, and --device is {options.device}")
    if options.rehearse and options.json:
        parser.error("--rehearse times nothing: leave out --json")
    return options


def usable_device(text: str) -> str:
    """A device that torch can use here."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without the device
        raise argparse.ArgumentTypeError(f"{text} cannot be used here: {str(error).splitlines()[0]}") from error
    return text


def measure(calls: Mapping[Key, Call], device: torch.device, rounds: int) -> dict[Key, list[float]]:
    """Seconds of one call of every contender in every round.

    A turn repeats its call until it is long enough to be timed; the order turns too, so that nobody always goes
    first.

    Args:
        calls: By name; what they return is thrown away.
        device: Waited for at both ends of a turn.
        rounds: Measured rounds.
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
    seconds: dict[Key, list[float]] = {name: [] for name in calls}
    names = list(calls)
    # the first round is for warming up, after the call that compiles and the one that is timed for its length
    for turn in range(1 + rounds):
        for position in range(len(names)):
            name = names[(turn + position) % len(names)]
            start = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            wait(device)
            if turn > 0:
                seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def host_seconds(call: Call, device: torch.device) -> float | None:
    """The host's own time of a call, median of a few: until it returns, with the device idle before and not waited for.

    A call as long as this is bound by launches, not by what the device does. One that launches more than the driver
    queues (some thousand kernels) waits within, so that for a whole model this is no more than an upper bound.

    Returns:
        None on a CPU, which does the work itself.
    """
    if device.type != "cuda":
        return None
    taken = []
    for _ in range(_HOST_CALLS):
        wait(device)
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    wait(device)
    return statistics.median(taken)


def figures(own: list[float], call: Call, device: torch.device, energy: bool) -> dict[str, Any]:
    """What a record holds of one contender's times: seconds, the host's share of them and, where wanted, energy.

    Args:
        own: Seconds of a call, by round.
        call: What they are of.
        device: Where it ran.
        energy: Whether to measure ``joules``, which takes more than a second.
    """
    found = {"seconds": spread(own), "host_seconds": host_seconds(call, device)}
    return found | ({"joules": joules(call, device)} if energy else {})


def host_text(found: dict[str, Any]) -> str:
    """The host's time of a contender for a printed line; nothing where the host is the device."""
    return "" if found["host_seconds"] is None else f"  host {found['host_seconds'] * 1e6:.0f} us"


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


def machine(device: torch.device) -> str:
    """The device's name; of a CPU what it can do, and with how many threads, as well."""
    name = device_name(device)
    if device.type == "cuda":
        return name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def one_line(error: Exception) -> str:
    """What kind of error it is, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


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

    Raises:
        UserError: It cannot be written there.
    """

    def __init__(self, benchmark: str, device: torch.device, dtype: torch.dtype, path: Path | None) -> None:
        if path is not None:
            make_room(path, "--json")
        self.device, self.path = device, path
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "command": shlex.join(["python", *sys.argv]),
            "device": machine(device),
            "device_type": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "versions": _versions(),
            "matmul_peak_flops": matmul_peak(device, dtype),
            "failures": [],
            "cases": [],
        }

    @property
    def peak(self) -> float:
        """FLOP/s of a large matrix product here."""
        return float(self.content["matmul_peak_flops"])

    def reason(self, who: str, error: Exception) -> str:
        """Why a contender has no figure, in one line; what nobody foresaw is a failure of the benchmark as well."""
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, torch.OutOfMemoryError):
            return "out of memory"
        traceback.print_exception(error)
        said = one_line(error)
        self.content["failures"].append(f"{who}: {said}")
        return said

    def add(self, case: dict[str, Any]) -> None:
        """Take in a case and write the file, whole or not at all."""
        self.content["cases"].append(case)
        if self.path is not None:
            write_whole(self.path, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """End the program with exit code 1 if anything failed that should not have."""
        if failures := self.content["failures"]:
            sys.exit("\n".join(("failed:", *failures)))
