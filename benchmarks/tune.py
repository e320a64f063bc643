"""Time every path of the FFN that can run here, and write the record from which ``backend: auto`` chooses.

The paths take turns (``measuring.py``), each held against plain PyTorch in float32 before it is timed; a wrong
one is reported and not recorded. Cases that were measured before and not now stay in the file. With ``--from`` nothing
is measured: the file is made of records of ``ffn.py``, see ``recorded.py``.

    elas bench --tune                      # the paper's shapes on a GPU, a small one on a CPU
    elas bench --tune --shape 1b --tokens 16384 --compile --out elas_lightning/ops/measurements/h200.json
    elas bench --tune --from benchmarks/results/h200/ffn.json --out elas_lightning/ops/measurements/h200.json
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# `elas` runs this file without its folder in the path
sys.path.insert(0, str(Path(__file__).resolve().parent))

from contenders import SHAPES, STORAGES, TWIN, baselines
from measuring import measure, usable_device
from modes import compiled
from recorded import convert

from elas_lightning.commands.arguments import Parser, at_least_one
from elas_lightning.errors import UserError
from elas_lightning.files import make_room, write_whole
from elas_lightning.ops import lowrank_ffn, resolve_backend
from elas_lightning.ops.backend import BACKENDS
from elas_lightning.ops.measured import Case, device_name, user_folder

# Relative, in the Frobenius norm, against float32: 2:4 decides near ties by the last bit.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}

# Options that say what to measure, and how.
MEASURING = ("shape", "tokens", "direction", "dtype", "compile", "rounds", "device")

Step = Callable[[], Tensor]


def sizes(shape: str) -> tuple[int, int]:
    """Rank and d_ff."""
    config = baselines(shape)[TWIN]
    assert config.ffn_rank is not None
    return config.ffn_rank, config.ffn_width


def make_call(case: Case, path: str) -> Callable[..., Tensor]:
    """The FFN by one path, compiled where the case says so."""
    backend, storage = path.split()
    sparsity: Any = case.sparsity

    def call(z: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return lowrank_ffn(z, up, down.t(), sparsity=sparsity, backend=backend, storage=storage)  # type: ignore[arg-type]

    return compiled(call) if case.compiled else call


def make_step(case: Case, path: str, device: torch.device) -> Step:
    """A closure that runs one path.

    Raises:
        ValueError: The path cannot run this case, or is wrong.
    """
    dtype, call = getattr(torch, case.dtype), make_call(case, path)
    torch.manual_seed(0)
    z = torch.randn(case.tokens, case.rank, device=device).to(dtype)
    up = (torch.randn(case.features, case.rank, device=device) / case.rank**0.5).to(dtype)
    down = (torch.randn(case.rank, case.features, device=device) / case.features**0.5).to(dtype)
    grad = torch.randn(case.tokens, case.rank, device=device).to(dtype)
    training = case.direction == "training"
    inputs = [t.requires_grad_(training) for t in (z, up, down)]

    def once() -> Tensor:
        with torch.set_grad_enabled(training):
            out = call(*inputs)
        if training:
            torch.autograd.grad(out, inputs, grad)
        return out

    exact = make_call(Case(**{**vars(case), "compiled": False}), "reference dense")
    few = min(case.tokens, 1024)
    with torch.no_grad():
        expected = exact(z[:few].float(), up.float(), down.float())
    error = float((once()[:few].detach().float() - expected).norm() / expected.norm())
    if not error < TOLERANCE[case.dtype]:
        raise UserError(f"wrong: error {error:.2g} is above {TOLERANCE[case.dtype]:.2g}")

    return once


def backends_here(device: torch.device) -> list[str]:
    """The backends that can run; prints why the others cannot."""
    found = []
    for backend in BACKENDS[1:]:
        try:
            resolve_backend(backend, device)
            found.append(backend)
        except UserError as refusal:
            print(f"left out: {refusal}")
    return found


def measure_case(case: Case, backends: list[str], device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every path of some backends, as a record holds them; prints what it finds."""
    print(case)
    steps: dict[str, Step] = {}
    for backend in backends:
        for storage in STORAGES:
            path = f"{backend} {storage}"
            try:
                steps[path] = make_step(case, path, device)
            except torch.OutOfMemoryError:
                print(f"  {path:32} out of memory")
            except ValueError as refusal:
                print(f"  {path:32} {refusal}")
    timed = measure(steps, device, options.rounds)
    seconds = {path: statistics.median(values) for path, values in timed.items()}
    plain = seconds.get("reference dense")  # it keeps the most, and may be the one that has no room
    for path, value in sorted(seconds.items(), key=lambda item: item[1]):
        against = f"  {plain / value:.2f}x reference dense" if plain else ""
        print(f"  {path:32} {value * 1e6:12.0f} us{against}")
    fields = {key: value for key, value in vars(case).items() if key != "features"}
    return {**fields, "d_ff": case.features, "seconds": seconds}


def here() -> dict[str, Any]:
    """What a file says of measurements made in this process."""
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "cusparselt": torch.backends.cusparselt.version(),
        },
        "threads": torch.get_num_threads(),
    }


def write(path: Path, device: str, about: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    """Add cases to the file of a device, in place of those of the same kind and sizes."""

    def identity(case: dict[str, Any]) -> tuple[Any, ...]:
        known = ((key, value) for key, value in case.items() if key != "seconds" and value is not None)
        return tuple(sorted(known))

    before: dict[str, Any] = {"device": device, "cases": []}
    if path.exists():
        before = json.loads(path.read_text())
    if before["device"] != device:
        raise UserError(f"{path} holds measurements of {before['device']}, not of {device}: name another file")
    new = {identity(case) for case in cases}
    record = {
        "device": device,
        "command": shlex.join(["elas", "bench", "--tune", *sys.argv[1:]]),
        **about,
        "cases": [case for case in before["cases"] if identity(case) not in new] + cases,
    }
    make_room(path, "--out")
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    cuda = torch.cuda.is_available()
    parser = Parser("elas bench --tune", description="Measure what `backend: auto` chooses from.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES)[1:] if cuda else ["60m"])
    parser.add_argument("--tokens", nargs="+", type=at_least_one, default=[4096, 16384, 65536] if cuda else [256])
    parser.add_argument("--direction", nargs="+", choices=("forward", "training"), default=["forward", "training"])
    parser.add_argument("--dtype", choices=TOLERANCE, default="bfloat16" if cuda else "float32")
    parser.add_argument("--compile", action="store_true", help="measure under torch.compile, too")
    parser.add_argument("--rounds", type=at_least_one, default=10, help="measured rounds")
    parser.add_argument("--device", type=usable_device, default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--from",
        nargs="+",
        type=Path,
        dest="records",
        metavar="RECORD",
        help="measure nothing: take the eager and compiled figures of records of `elas bench ffn` (of the whole FFN)",
    )
    parser.add_argument("--out", type=Path, help="the record (default: one that `auto` reads, in the cache folder)")
    options = parser.parse_args()
    if options.records:
        given = [name for name in MEASURING if getattr(options, name) != parser.get_default(name)]
        if given:
            parser.error(f"--from measures nothing: leave out --{' and --'.join(given)}")
    return options


def file_of(device: str) -> Path:
    """Where the measurements of a device lie that ``auto`` reads, in the user's own folder."""
    return user_folder() / f"{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def main() -> None:
    """Convert records, or measure case by case; the file is written after each."""
    options = parse()
    if options.records:
        name, about, cases = convert(options.records)
        path = options.out or file_of(name)
        write(path, name, about, cases)
        print(f"record: {path}, {len(cases)} cases of {name}, seconds of the {about['measured']}")
        return
    device = torch.device(options.device)
    name, about = device_name(device), here()
    path = options.out or file_of(name)
    write(path, name, about, [])  # a file that cannot be written is known before anything is measured
    backends = backends_here(device)
    for shape in options.shape:
        for tokens in options.tokens:
            for sparsity in ("2:4", None):
                for direction in options.direction:
                    for by_compiler in (False, True) if options.compile else (False,):
                        case = Case(*sizes(shape), tokens, options.dtype, sparsity, direction, by_compiler)
                        write(path, name, about, [measure_case(case, backends, device, options)])
    print(f"record: {path}")


if __name__ == "__main__":
    main()
