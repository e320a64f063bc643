"""Everything there is to measure on a GPU box, in the order of what matters most, within a number of minutes.

Needs torch, triton and this checkout, and neither Lightning nor datasets. Each part is a process of its own that
writes its record after every case, so that one that dies, or is stopped when the time is over, loses the case it
was in and nothing else.

    python benchmarks/gpu.py --minutes 25 --out benchmarks/results/h200
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from elas_lightning.commands.arguments import Parser

HERE = Path(__file__).resolve().parent

# name, share of the time it may take at most, command
PARTS: list[tuple[str, float, list[str]]] = [
    # without the conftest of the whole suite, which needs datasets
    ("tests", 0.2, ["-m", "pytest", "-m", "gpu or not gpu", "--confcutdir=tests/ops", "tests/ops"]),
    ("ffn", 0.35, ["benchmarks/ffn.py", "--shape", "60m", "130m", "350m", "1b", "7b", "--tokens", "16384",
                   "--compile", "--autotune"]),
    ("train_step", 0.3, ["benchmarks/train_step.py", "--shape", "60m", "1b", "--batch", "64", "--compile", "--only",
                         "full-rank SwiGLU", "low-rank ReLU²", "triton, recompute", "cusparselt,"]),
    ("prefill", 0.2, ["benchmarks/prefill.py", "--shape", "60m", "1b", "--batch", "16", "--sequence", "1024",
                      "--compile"]),
    ("ffn_tokens", 0.3, ["benchmarks/ffn.py", "--shape", "60m", "1b", "--tokens", "4096", "65536", "131072",
                         "--compile"]),
    ("train_step_checkpointed", 0.2, ["benchmarks/train_step.py", "--shape", "1b", "--batch", "64", "--checkpointing",
                                      "block", "--only", "full-rank SwiGLU", "low-rank ReLU²", "triton, recompute"]),
    ("train_step_eager", 0.3, ["benchmarks/train_step.py", "--shape", "60m", "130m", "350m", "--batch", "64"]),
]  # fmt: skip


def main() -> None:
    """Run part after part while there is time."""
    parser = Parser(description="Measure everything on a GPU box.")
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--only", nargs="+", choices=[name for name, *_ in PARTS], help="these parts alone")
    options = parser.parse_args()
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes is {options.minutes}: give a number above 0")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    failed = []
    for name, share, command in PARTS:
        if options.only and name not in options.only:
            continue
        left = min(end - time.monotonic(), 60 * options.minutes * share)
        if left <= 0:
            print(f"{name}: no time left")
            continue
        record = [] if name == "tests" else ["--json", str(options.out / f"{name}.json")]
        print(f"{name}: at most {left:.0f} s", flush=True)
        with (options.out / f"{name}.log").open("w") as log:
            try:
                done = subprocess.run(
                    [sys.executable, *command, *record],
                    cwd=HERE.parent,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=left,
                )
                ended = f"exit code {done.returncode}"
                failed += [name] if done.returncode else []
            except subprocess.TimeoutExpired:
                ended = "out of time; its record holds the cases that were finished"
        print(f"{name}: {ended}; {options.out / f'{name}.log'}", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
