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

    _add_model_commands(commands)

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


def _add_model_commands(commands: Any) -> None:
    """What is done with a trained model."""
    generate = commands.add_parser("generate", help="continue a text with a trained model")
    _add_model(generate)
    generate.add_argument("prompt", help="the text to continue; - reads it from standard input")
    generate.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="stop after N tokens")
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0: the likeliest token each time (default); 1: sample"
    )
    generate.add_argument(
        "--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this share"
    )
    generate.add_argument("--seed", type=int, default=0, help="of the sampling")
    generate.add_argument("--device", default="cpu", help="where to run, e.g. cuda")
    generate.set_defaults(run=_generate)

    export = commands.add_parser(
        "export", help="write a trained model as a folder for transformers, or for elas"
    )
    _add_model(export)
    export.add_argument("folder", help="where to write; a new folder")
    export.add_argument("--form", choices=("merged", "factors"), default="merged",
                        help="merged: for transformers, factors multiplied out, 2:4 step left off (default); "
                        "factors: for elas, exactly as trained")  # fmt: skip
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    export.add_argument("--eval-tokens", type=int, default=100_000, metavar="N",
                        help="validation tokens on which to measure what leaving off 2:4 does; 0: none")  # fmt: skip
    export.set_defaults(run=_export)

    import_ = commands.add_parser("import", help="take over a Llama or Arcee folder of Hugging Face")
    import_.add_argument("source", help="a local folder with config.json, safetensors and tokenizer.json")
    import_.add_argument("folder", help="where to write; a new folder")
    import_.add_argument(
        "--rank", type=int, help="cut every matrix of attention and FFN to this rank (default: full)"
    )
    import_.add_argument("--tokenizer", help="a tokenizer.json from elsewhere")
    import_.set_defaults(run=_import)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="a *.ckpt, a run's directory, or a folder of `elas export --form factors`"
    )


def _override(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. trainer.max_steps=50")
    return key, yaml.safe_load(value)


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

    from elas_lightning.sweep.run import make_plan, run_sweep

    overrides = dict(options.overrides)
    if options.dry_run:
        plan = make_plan(options.name, options.size, options.data, overrides)
        plan.check()
        if plan.spec.is_search:
            print(
                f"{plan.spec.trials} points are drawn by {plan.spec.sampler}, {len(plan.spec.seeds)} seeds each"
            )
        else:
            for planned in plan.runs():
                print(f"{planned.label}, seed {planned.seed}: {planned.request.command}")
        return 0
    console = Console()
    folder = run_sweep(options.name, options.size, options.data, overrides, console)
    return _write_report(folder)


def _plots(options: argparse.Namespace) -> int:
    from elas_lightning.analysis.plots import write_plots

    for path in write_plots(_results(options)):
        print(path)
    return 0


def _report(options: argparse.Namespace) -> int:
    return _write_report(_results(options))


def _write_report(folder: Any) -> int:
    from elas_lightning.analysis.plots import write_plots
    from elas_lightning.analysis.report import write_report

    write_plots(folder)
    print(f"report: {write_report(folder)}")
    return 0


def _results(options: argparse.Namespace) -> Any:
    from elas_lightning.layout import sweep_folder

    return sweep_folder(options.name, options.size, options.data)


def _generate(options: argparse.Namespace) -> int:
    from elas_lightning.inference.generate import print_continuation
    from elas_lightning.inference.load import load_model

    trained = load_model(options.model, options.device)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    try:
        print_continuation(trained, prompt, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
                           top_p=options.top_p, seed=options.seed)  # fmt: skip
    except KeyboardInterrupt:  # there is nothing to go on with, as `_stopped` would say
        print()
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader, `head` perhaps, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _export(options: argparse.Namespace) -> int:
    from elas_lightning.inference.export import export_model
    from elas_lightning.inference.load import load_model

    trained = load_model(options.model)
    done = export_model(
        trained, options.folder, form=options.form, dtype=options.dtype, eval_tokens=options.eval_tokens
    )
    if isinstance(done.effect, str):
        print(f"the effect of the 2:4 step was not measured: {done.effect}", file=sys.stderr)
    elif done.effect is not None:
        print(f"perplexity with the 2:4 step {done.effect.kept:.2f}, without {done.effect.dropped:.2f} "
              f"({done.effect.per_cent:+.2f} %, {done.effect.tokens:,} tokens)")  # fmt: skip
    print(f"{done.what}: {done.folder}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from elas_lightning.inference.from_hf import import_model

    done = import_model(options.source, options.folder, rank=options.rank, tokenizer=options.tokenizer)
    if done.layers:
        width = max(len(layer.name) for layer in done.layers)
        print(f"{'layer':{width}}  kept energy")
        for layer in done.layers:
            print(f"{layer.name:{width}}  {layer.kept_energy:11.4f}")
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"imported: {done.folder}")
    return 0


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
