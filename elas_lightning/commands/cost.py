"""``elas account`` and ``elas bench``: what a model costs by calculation, and by measurement."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from elas_lightning.commands.arguments import Parser, add_set
from elas_lightning.errors import UserError

_BENCHMARKS = ("train-step", "ffn", "prefill", "decode", "memory-account", "loader", "gpu")
_BENCH_HELP = f"""\
usage: elas bench [{{{",".join(_BENCHMARKS)}}}] [options]
       elas bench --tune [options]    measure what backend auto chooses from
       elas bench --report [folder]   tables and plots of the records in a folder

Measures side by side on this machine; train-step if none is named. `elas bench NAME --help` and
`elas bench --tune --help` list the options of each."""


def add(commands: Any) -> None:
    """Declare the subcommands; ``bench`` takes its own arguments, see :func:`bench`."""
    account = commands.add_parser(
        "account", help="parameters, FLOPs and bytes of a configuration, or of all that ship, without building anything"
    )
    _add_account(account)
    account.set_defaults(run=_account)

    commands.add_parser(
        "bench",
        help="measure side by side on this machine: train-step (default), ffn, prefill, decode, memory-account, "
        "loader, gpu; --tune: what backend auto chooses from; --report: tables and plots of the records",
        add_help=False,
    )


def _add_account(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", action="append", metavar="FILE", help="an overlay, as for fit; several stack")
    which.add_argument("--all", action="store_true", help="every size and method of experiments/")
    add_set(parser, "set a dotted configuration key, e.g. model.config.ffn_rank=96")
    parser.add_argument("--batch", type=int, help="sequences of a micro-batch (default: data.batch_size)")
    parser.add_argument("--sequence", type=int, help="tokens of each (default: data.sequence_length)")
    parser.add_argument(
        "--dtype",
        metavar="PRECISION",
        help="32-true, bf16-mixed, 16-mixed, bf16-true or 16-true (default: trainer.precision)",
    )
    parser.add_argument(
        "--device", help="cuda or cpu, where different tensors are kept (default: cuda unless trainer says cpu)"
    )
    parser.add_argument("--checkpointing", help="none, block or bottleneck (default: model.config.checkpointing)")
    parser.add_argument("--json", metavar="FILE", help="also write the account to this file")


def _account(options: argparse.Namespace) -> int:
    from elas_lightning.commands.account import StepRequest, account_of, account_of_all

    request = StepRequest(options.batch, options.sequence, options.dtype, options.device, options.checkpointing)
    written = Path(options.json) if options.json else None
    overrides = dict(options.overrides)
    if options.all:
        account_of_all(overrides, request, written)
    else:
        account_of([Path(path) for path in options.config], overrides, request, written)
    return 0


def bench(arguments: list[str]) -> int:
    """Run a benchmark script with the rest of the command line, which is its own.

    Args:
        arguments: What follows ``elas bench``.

    Raises:
        UserError: There is no such benchmark.
    """
    import runpy

    from elas_lightning.layout import shipped_folder

    first, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if first in ("-h", "--help"):
        print(_BENCH_HELP)
        return 0
    if first == "--report":
        return _bench_report(rest)
    if first and not first.startswith("-") and first not in _BENCHMARKS:
        raise UserError(f"there is no benchmark named {first!r}: choose one of {', '.join(_BENCHMARKS)}")
    scripts = {path.stem.replace("_", "-"): path for path in shipped_folder("benchmarks").glob("*.py")}
    name = "tune" if first == "--tune" else first if first in _BENCHMARKS else "train-step"
    sys.argv = [os.path.relpath(scripts[name]), *(rest if first == "--tune" or name == first else arguments)]
    sys.path.insert(0, str(scripts[name].parent))  # where the scripts find each other
    runpy.run_path(str(scripts[name]), run_name="__main__")
    return 0


def _bench_report(arguments: list[str]) -> int:
    from elas_lightning.analysis.benchmarks import write_benchmark_report

    parser = Parser("elas bench --report")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("benchmarks/results"), help="of records")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="where the page goes")
    options = parser.parse_args(arguments)
    print(f"report: {write_benchmark_report(options.folder, options.out)}")
    return 0
