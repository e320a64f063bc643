"""The ``elas`` command. Each subcommand imports what it needs when it runs, so that ``--help`` is instant."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from elas_lightning import __version__
from elas_lightning.errors import UserError

_DESCRIPTION = "Pre-train low-rank language models with 2:4 sparse activations, and sweep over how."
_LIGHTNING_COMMANDS = {
    "fit": "train a model: --config overlay.yaml (several stack), dotted overrides, --print_config",
    "validate": "measure a checkpoint: as fit, with --ckpt_path",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for wrong input, 128 + signal when stopped.

    Args:
        arguments: Without the program's name; ``None`` takes ``sys.argv``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and arguments[0] in _LIGHTNING_COMMANDS:
            return _lightning_command(arguments)
        return _parse(arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT)
    except BaseException as stop:
        if hasattr(stop, "signal_number"):  # Interrupted, whose module would import torch
            return _stopped(stop.signal_number)
        # what Lightning makes of a Ctrl-C before training begins, or of a second one
        if isinstance(stop, SystemExit) and isinstance(stop.__context__, KeyboardInterrupt):
            return _stopped(signal.SIGINT)
        raise


def _parse(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("elas", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"elas-lightning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for name, text in _LIGHTNING_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)

    sweep = commands.add_parser("sweep", help="run a file of sweeps/ to its end, then plots and report")
    _add_study(sweep)
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", type=_override, dest="overrides",
                       help="set a dotted configuration key for every run, e.g. trainer.max_steps=50")  # fmt: skip
    sweep.add_argument("--budget", type=_minutes, metavar="MINUTES",
                       help="begin no more runs after that time; the same command goes on later")  # fmt: skip
    sweep.add_argument(
        "--dry-run", action="store_true", help="check the sweep and list its runs, run nothing"
    )
    sweep.set_defaults(run=_sweep)

    plots = commands.add_parser("plots", help="redraw a sweep's plots from its stored results")
    _add_study(plots)
    plots.set_defaults(run=_plots)

    report = commands.add_parser(
        "report", help="rewrite a sweep's plots and report.html from its stored results"
    )
    _add_study(report)
    report.set_defaults(run=_report)

    bench = commands.add_parser(
        "bench", help="measure training steps side by side on this machine", add_help=False
    )
    bench.set_defaults(run=None)

    if arguments[:1] == ["bench"]:
        return _bench(arguments[1:])
    options = parser.parse_args(arguments)
    result: int = options.run(options)
    return result


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a file of sweeps/ without its ending, or the path of a YAML file")
    parser.add_argument(
        "--size", help="a file of experiments/sizes (default: what the sweep names for this machine)"
    )
    parser.add_argument("--data", help="a file of experiments/data (default: likewise)")


def _override(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. trainer.max_steps=50")
    return key, yaml.safe_load(value)


def _minutes(text: str) -> float:
    minutes = float(text)
    if minutes < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative: give minutes")
    return minutes


def _lightning_command(arguments: list[str]) -> int:
    from elas_lightning.configuration import quiet_lightning
    from elas_lightning.runner import RunCommand

    quiet_lightning()
    cli = RunCommand(arguments, run=True)
    if cli.subcommand == "fit" and cli.trainer.is_global_zero:
        print(f"results: {cli.directory}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from rich.console import Console

    from elas_lightning.sweep.composite import Composite, is_composite
    from elas_lightning.sweep.run import Request, run_sweep

    request = Request(options.name, options.size, options.data, dict(options.overrides), options.budget)
    if is_composite(options.name):
        return _composite(Composite(request), options)
    if options.dry_run:
        plan = request.plan()
        plan.check()
        if plan.spec.is_search:
            print(
                f"{plan.spec.trials} points are drawn by {plan.spec.sampler}, {len(plan.spec.seeds)} seeds each"
            )
        else:
            for planned in plan.runs():
                print(f"{planned.label}, seed {planned.seed}: {planned.request.command}")
        return 0
    missing = run_sweep(request, Console())
    _report(options)
    if missing:
        print(f"{missing} runs are missing; the same command goes on")
    return 0


def _composite(composite: Any, options: argparse.Namespace) -> int:
    from rich.console import Console

    composite.check()
    if options.dry_run:
        for line in composite.list_runs():
            print(line)
        return 0
    missing = composite.run(Console())
    _report(options)
    if missing:
        print(f"missing: {'; '.join(missing)}. The same command goes on")
    return 0


def _plots(options: argparse.Namespace) -> int:
    from elas_lightning.analysis.paper.load import is_paper
    from elas_lightning.analysis.paper.report import write_paper_plots
    from elas_lightning.analysis.plots import write_plots

    folder = _results(options)
    for path in write_paper_plots(folder) if is_paper(folder) else write_plots(folder):
        print(path)
    return 0


def _report(options: argparse.Namespace) -> int:
    from elas_lightning.analysis.paper.load import is_paper
    from elas_lightning.analysis.paper.report import write_paper_report
    from elas_lightning.analysis.report import write_report
    from elas_lightning.layout import shipped_folder

    folder = _results(options)
    if is_paper(folder):
        path = write_paper_report(folder, shipped_folder("benchmarks") / "results")
    else:
        path = write_report(folder)
    print(f"report: {path}")
    return 0


def _results(options: argparse.Namespace) -> Any:
    from elas_lightning.layout import sweep_folder

    return sweep_folder(options.name, options.size, options.data)


def _bench(arguments: list[str]) -> int:
    import runpy

    from elas_lightning.layout import shipped_folder

    script = shipped_folder("benchmarks") / "train_step.py"
    sys.argv = [os.path.relpath(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _stopped(number: int) -> int:
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    return 128 + number
