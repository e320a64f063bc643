"""``elas sweep``, ``plots``, ``report`` and ``compare``: studies, and what their results say."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from elas_lightning.commands.arguments import add_set, at_least_one, minutes
from elas_lightning.errors import UserError
from elas_lightning.layout import sweep_folder, sweep_path


def add(commands: Any) -> None:
    """Declare the subcommands."""
    sweep = commands.add_parser(
        "sweep", help="run a file of sweeps/ to its end, then plots and report; `sweep status` says how far it is"
    )
    _add_sweep(sweep)
    sweep.set_defaults(run=_sweep)

    plots = commands.add_parser("plots", help="redraw a sweep's plots from its stored results")
    _add_study(plots)
    plots.set_defaults(run=_plots)

    report = commands.add_parser("report", help="rewrite a sweep's plots and report.html from its stored results")
    _add_study(report)
    report.set_defaults(run=_report)

    compare = commands.add_parser("compare", help="set runs or sweeps side by side, from their result files")
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN[:LABEL,...]",
        help="a run's directory, a folder of them, or (part of) a sweep's folder",
    )
    compare.add_argument("--out", type=Path, metavar="DIR", help="write compare.html, tables as CSV and plots")
    compare.set_defaults(run=_compare)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_study(parser, "; `status`: how far sweeps are; `serve`: the proxy of --storage")
    parser.add_argument(
        "--port",
        type=at_least_one,
        default=13000,
        metavar="N",
        help="with `serve`: the port the proxy of --storage answers on (default: 13000)",
    )
    parser.add_argument("of", nargs="?", help="with `status`: the sweep to look at (default: all below runs/)")
    add_set(parser, "set a dotted configuration key for every run, e.g. trainer.max_steps=50")
    parser.add_argument(
        "--budget",
        type=minutes,
        metavar="MINUTES",
        help="start no more runs after this time; the same command makes the rest later",
    )
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=1,
        metavar="N",
        help="make N runs at a time; they share the machine's GPUs or cores",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="where the study lives; the same command elsewhere joins in (default: a file)"
    )
    parser.add_argument(
        "--patience",
        type=minutes,
        default=30.0,
        metavar="MINUTES",
        help="kill and resume a run that makes no progress for this long (default: 30)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check the sweep and list its runs, run nothing")


def _add_study(parser: argparse.ArgumentParser, besides: str = "") -> None:
    parser.add_argument("name", help=f"a file of sweeps/ without its ending, or the path of a YAML file{besides}")
    parser.add_argument("--size", help="a file of experiments/sizes (default: what the sweep names for this machine)")
    parser.add_argument("--data", help="a file of experiments/data (default: likewise)")


def _sweep(options: argparse.Namespace) -> int:
    if options.name == "status":
        return _status(options)
    if options.name == "serve":
        return _serve(options)
    if options.of is not None:
        raise UserError(f"sweep takes one name, not {options.name} and {options.of}; `elas sweep status` takes another")
    sweep_path(options.name)  # a wrong name is told at once, before what takes seconds to import

    from rich.console import Console

    from elas_lightning.sweep.composite import Composite, is_composite
    from elas_lightning.sweep.run import Request, run_sweep
    from elas_lightning.sweep.worker import Timing

    request = Request(
        options.name,
        options.size,
        options.data,
        dict(options.overrides),
        options.budget,
        options.workers,
        options.storage,
        Timing(patience=60 * options.patience),
    )
    if is_composite(options.name):
        return _composite(Composite(request), options)
    if options.dry_run:
        plan = request.plan()
        plan.check()
        if plan.spec.is_search:
            print(f"{plan.spec.trials} points are drawn by {plan.spec.sampler}, {len(plan.spec.seeds)} seeds each")
        else:
            for planned in plan.runs():
                print(f"{planned.label}, seed {planned.seed}: {planned.request.command}")
        return 0
    missing = run_sweep(request, Console())
    _report(options)
    if missing:
        print(f"{missing} runs are missing; the same command goes on")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from elas_lightning.sweep.storage import redact, serve

    if options.storage is None:
        raise UserError("sweep serve needs --storage URL: the database that it is to answer for")
    print(f"answering for {redact(options.storage)} on port {options.port}; Ctrl-C stops it", flush=True)
    serve(options.storage, options.port)
    return 0


def _status(options: argparse.Namespace) -> int:
    from elas_lightning.analysis.paper.load import is_paper
    from elas_lightning.sweep.status import describe_all, describe_folder, describe_parts

    if options.of is None:
        lines = describe_all(options.storage)
    else:
        folder = sweep_folder(options.of, options.size, options.data)
        lines = describe_folder(folder, options.storage, Path(options.of).stem)
        if is_paper(folder):
            lines = describe_parts(folder, options.storage)
    for line in lines:
        print(line)
    return 0


def _composite(composite: Any, options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console()
    composite.announce(console)
    composite.check(console)
    if options.dry_run:
        for line in composite.list_runs():
            print(line)
        return 0
    missing = composite.run(console)
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
    return sweep_folder(options.name, options.size, options.data)


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from elas_lightning.analysis import compare, compare_page

    comparison = compare.compare(options.runs)
    compare_page.show(comparison, Console(markup=False))  # brackets in a name are a part of it
    if options.out:
        print(f"page: {compare_page.write(comparison, options.out, shlex.join(['elas', *options.arguments]))}")
    return 0
