"""Everything there is to measure on a GPU box, in the order of what matters most, within a number of minutes.

Needs torch, triton and this checkout, and neither Lightning nor datasets. Each part is a process of its own that
writes its record after every case, so that one that dies, or is stopped when the time is over, loses the case it
was in and nothing else. Compilers take longer than what they compile, so first all parts are rehearsed side by side,
untimed, each shape in a process: what they compile is on disk when the parts run, alone and one after another.

    python benchmarks/gpu.py --minutes 6 --out benchmarks/results/h200 --only ffn train_step prefill ffn_131072
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from elas_lightning.commands.arguments import Parser

HERE = Path(__file__).resolve().parent
# Of all the time, at most.
REHEARSAL_SHARE = 0.25


@dataclass(frozen=True)
class Part:
    """One process and its record.

    Args:
        name: Of the part, its record and its log.
        share: Of all the time, at most.
        command: What Python runs.
        cases: Options of which each value is a case; each combination is rehearsed by itself.
        rehearsal: Options of the rehearsal alone; None: there is nothing to rehearse.
    """

    name: str
    share: float
    command: tuple[str, ...]
    cases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rehearsal: tuple[str, ...] | None = None

    def whole(self) -> list[str]:
        """The command with all its cases."""
        return [*self.command, *(word for option, values in self.cases for word in (option, *values))]

    def rehearsals(self) -> list[list[str]]:
        """A command for each combination of cases."""
        if self.rehearsal is None:
            return []
        each = product(*([(option, value) for value in values] for option, values in self.cases))
        return [
            [*self.command, *(word for pair in case for word in pair), *self.rehearsal, "--rehearse"] for case in each
        ]


COMPILED = ("--compile", "--without-eager")
EVERY_SHAPE = ("--shape", ("60m", "130m", "350m", "1b", "7b"))
BOTH = ("full-rank SwiGLU", "low-rank ReLU²")
# In training, what a user would choose between.
FASTEST = ("triton, recompute", "hopper, recompute", "hopper, dense")
PATHS = (
    "low-rank ReLU²",
    "ELAS, reference, dense",
    "ELAS, triton, recompute",
    "ELAS, hopper, recompute",
    "ELAS, hopper, dense",
    "ELAS, cusparselt, recompute",
)
# A block is compiled once for all layers, so one layer is enough to rehearse.
BLOCKS = ("--compile", "blocks", "--rounds", "5")
ONE_LAYER = ("--layers", "1")

PARTS = (
    # eager, compiled, and replayed without launches; what ``auto`` chooses from is made of this record
    Part("ffn", 0.45, ("benchmarks/ffn.py", "--compile", "--cuda-graph", "--rounds", "5", "--tokens", "16384",
                       "--only", *PATHS), (EVERY_SHAPE,), ()),
    Part("train_step", 0.22, ("benchmarks/train_step.py", *BLOCKS, "--batch", "64", "--energy",
                              "--only", *BOTH, *FASTEST),
         (("--shape", ("1b",)),), ONE_LAYER),
    Part("prefill", 0.15, ("benchmarks/prefill.py", *BLOCKS, "--without-eager", "--batch", "16", "--sequence", "1024",
                           "--only", *BOTH, "triton, recompute", "hopper, dense"),
         (("--shape", ("60m", "1b")),), ONE_LAYER),
    # 131,072 tokens a step, the paper's batch
    Part("ffn_131072", 0.25, ("benchmarks/ffn.py", *COMPILED, "--rounds", "5", "--tokens", "131072", "--only", *PATHS,
                              "full-rank SwiGLU"), (("--shape", ("60m", "130m", "1b")),), ()),
    Part("train_step_60m", 0.2, ("benchmarks/train_step.py", *BLOCKS, "--batch", "512", "--only", *BOTH, *FASTEST),
         (("--shape", ("60m",)),), ONE_LAYER),
    Part("ffn_4096", 0.2, ("benchmarks/ffn.py", *COMPILED, "--cuda-graph", "--rounds", "7", "--tokens", "4096",
                           "--only", *PATHS), (EVERY_SHAPE,), ()),
    # not rehearsed: it chooses by timing, which wants the device to itself
    Part("ffn_autotune", 0.2, ("benchmarks/ffn.py", *COMPILED, "--autotune", "--rounds", "7", "--tokens", "16384",
                               "--only", *FASTEST),
         (("--shape", ("60m", "1b")),)),
    Part("train_step_checkpointed", 0.15, ("benchmarks/train_step.py", *BLOCKS, "--batch", "64",
                                           "--checkpointing", "block", "--only", *BOTH, *FASTEST),
         (("--shape", ("1b",)),), ONE_LAYER),
    Part("train_step_eager", 0.2, ("benchmarks/train_step.py", "--batch", "64", "--rounds", "5"),
         (("--shape", ("60m", "130m", "350m")),)),
    # without the conftest of the whole suite, which needs datasets
    Part("tests", 0.3, ("-m", "pytest", "-m", "gpu or not gpu", "--confcutdir=tests/ops", "tests/ops",
                        "-p", "no:benchmark", "-rf", "tests/benchmarks/test_modes.py")),
)  # fmt: skip


def start(command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Run Python in a session of its own, so that its compilers' workers end with it."""
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=HERE.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait for a process and remove what is left of its session; None where it had to be stopped."""
    try:
        return process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rehearse(parts: list[Part], seconds: float, logs: Path) -> None:
    """Run every case of the parts at once, untimed, and say how many came to their end."""
    commands = {
        f"rehearsal-{part.name}-{number}": command for part in parts for number, command in enumerate(part.rehearsals())
    }
    if not commands:
        return
    print(f"rehearsal: {len(commands)} processes, at most {seconds:.0f} s", flush=True)
    end = time.monotonic() + seconds
    threads = str(max(1, (os.cpu_count() or 1) // len(commands)))
    running: dict[str, subprocess.Popen[bytes]] = {}
    codes: dict[str, int | None] = {}
    try:
        for name, command in commands.items():
            running[name] = start(command, logs / f"{name}.log", TORCHINDUCTOR_COMPILE_THREADS=threads)
        for name, process in running.items():
            codes[name] = finish(process, end - time.monotonic())
    finally:  # also where somebody breaks it off
        for name in running.keys() - codes.keys():
            finish(running[name], 0)
    for name, code in codes.items():
        if code == 0:
            (logs / f"{name}.log").unlink()
    short = [name for name, code in codes.items() if code != 0]
    said = f"not to its end (it is compiled when it is timed): {', '.join(short)}" if short else "done"
    print(f"rehearsal: {said}", flush=True)


def main() -> None:
    """Rehearse, then run part after part while there is time."""
    parser = Parser("elas bench gpu", description="Measure everything on a GPU box.")
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    parser.add_argument("--no-rehearsal", action="store_true", help="where the compilers' caches are full")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    options = parser.parse_args()
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes is {options.minutes}: give a number above 0")
    parts = [part for part in PARTS if not options.only or part.name in options.only]
    if options.list:
        for part in parts:
            print(f"{part.name} ({part.share:.0%}): {shlex.join(['python', *part.whole()])}")
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be made ({error.strerror}): give another folder")
    seconds = 60 * options.minutes
    end = time.monotonic() + seconds
    if not options.no_rehearsal:
        rehearse(parts, REHEARSAL_SHARE * seconds, options.out)
    failed = []
    for part in parts:
        left = min(end - time.monotonic(), seconds * part.share)
        if left <= 0:
            print(f"{part.name}: no time left")
            continue
        record = [] if part.name == "tests" else ["--json", str(options.out.absolute() / f"{part.name}.json")]
        log, begun = options.out / f"{part.name}.log", time.monotonic()
        print(f"{part.name}: at most {left:.0f} s", flush=True)
        code = finish(start([*part.whole(), *record], log), left)
        failed += [part.name] if code else []
        ended = f"exit code {code}"
        if code is None:
            ended = "out of time; its record holds the cases that were finished"
        print(f"{part.name}: {ended}; {time.monotonic() - begun:.0f} s; {log}", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
