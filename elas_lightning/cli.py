"""The ``elas`` command. Each subcommand imports what it needs when it runs, so that ``--help`` is instant."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elas_lightning import __version__
from elas_lightning.errors import UserError

_DESCRIPTION = "Pre-train low-rank language models with 2:4 sparse activations, and sweep over how."
_BENCHMARKS = ("train-step", "ffn", "prefill", "decode", "gpu")
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

    _add_eval(
        commands.add_parser(
            "eval", help="measure a checkpoint: perplexity on text, downstream tasks of lm-eval"
        )
    )

    compare = commands.add_parser("compare", help="set runs or sweeps side by side, from their result files")
    compare.add_argument("runs", nargs="+", metavar="[NAME=]RUN[:LABEL,...]",
                         help="a run's directory, a folder of them, or (part of) a sweep's folder")  # fmt: skip
    compare.add_argument(
        "--out", type=Path, metavar="DIR", help="write compare.html, tables as CSV and plots"
    )
    compare.set_defaults(run=_compare)
    _add_model_commands(commands)
    account = commands.add_parser(
        "account",
        help="parameters, FLOPs and bytes of a configuration, or of all that ship, without building anything",
    )
    _add_account(account)
    account.set_defaults(run=_account)

    bench = commands.add_parser(
        "bench",
        help="measure side by side on this machine: train-step (default), ffn, prefill, decode; "
        "--tune: what backend auto chooses from; --report: tables and plots of the records",
        add_help=False,
    )
    bench.set_defaults(run=None)

    if arguments[:1] == ["bench"]:
        return _bench(arguments[1:])
    options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    result: int = options.run(options)
    return result


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a file of sweeps/ without its ending, or the path of a YAML file")
    parser.add_argument(
        "--size", help="a file of experiments/sizes (default: what the sweep names for this machine)"
    )
    parser.add_argument("--data", help="a file of experiments/data (default: likewise)")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, help="a *.ckpt file, or the directory of a run that still has one"
    )
    parser.add_argument("--text", nargs="+", type=Path, default=[], metavar="FILE",
                        help="UTF-8 text, C4-format shards (.jsonl, .json.gz), or folders of them")  # fmt: skip
    parser.add_argument(
        "--tasks", type=_names, default=[], metavar="NAME,...", help="tasks of lm-eval, e.g. arc_easy"
    )
    parser.add_argument(
        "--include", type=Path, metavar="FOLDER", help="a folder of task files (YAML) of your own"
    )
    parser.add_argument("--dense", action="store_true", help="measure again with the 2:4 step switched off")
    parser.add_argument("--length", type=int, help="tokens the model sees at once (default: as in training)")
    parser.add_argument(
        "--stride", type=int, help="tokens from one window of a document to the next (text; default: length)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="windows or requests at a time (default: 16)"
    )
    parser.add_argument("--limit", type=int, help="documents of each text and examples of each task at most")
    parser.add_argument(
        "--num-fewshot", type=int, help="examples in the prompt (default: what the task says)"
    )
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found to this file")
    parser.set_defaults(run=_eval)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


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


def _add_account(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--config", action="append", metavar="FILE", help="an overlay, as for fit; several stack"
    )
    which.add_argument("--all", action="store_true", help="every size and method of experiments/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", type=_override, dest="overrides",
                        help="set a dotted configuration key, e.g. model.config.ffn_rank=96")  # fmt: skip
    parser.add_argument("--batch", type=int, help="sequences of a micro-batch (default: data.batch_size)")
    parser.add_argument("--sequence", type=int, help="tokens of each (default: data.sequence_length)")
    parser.add_argument(
        "--dtype", metavar="PRECISION", help="32-true, bf16-mixed or bf16-true (default: trainer.precision)"
    )
    parser.add_argument(
        "--device", help="cuda or cpu, which keep different things (default: cuda unless trainer says cpu)"
    )
    parser.add_argument(
        "--checkpointing", help="none, block or bottleneck (default: model.config.checkpointing)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the account there, too")


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


def _eval(options: argparse.Namespace) -> int:
    from rich.console import Console

    from elas_lightning.inference import evaluate

    # of the tasks' files, which are not the reader's to mend
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    given = {key: value for key, value in vars(options).items() if key not in ("run", "json", "arguments")}
    request = evaluate.Evaluation(**given, command=shlex.join(["elas", *options.arguments]))
    found = evaluate.evaluate(request)
    evaluate.show(found, Console())
    if options.json:
        evaluate.write(found, options.json)
        print(f"results: {options.json}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from elas_lightning.analysis import compare, compare_page

    comparison = compare.compare(options.runs)
    compare_page.show(comparison, Console())
    if options.out:
        print(
            f"page: {compare_page.write(comparison, options.out, shlex.join(['elas', *options.arguments]))}"
        )
    return 0


def _generate(options: argparse.Namespace) -> int:
    from elas_lightning.inference.generate import print_continuation
    from elas_lightning.inference.load import load_model

    trained = load_model(options.model, options.device)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    print_continuation(trained, prompt, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
                       top_p=options.top_p, seed=options.seed)  # fmt: skip
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


def _account(options: argparse.Namespace) -> int:
    from pathlib import Path

    from elas_lightning.account_command import StepRequest, account_of, account_of_all

    request = StepRequest(
        options.batch, options.sequence, options.dtype, options.device, options.checkpointing
    )
    written = Path(options.json) if options.json else None
    overrides = dict(options.overrides)
    if options.all:
        account_of_all(overrides, request, written)
    else:
        account_of([Path(path) for path in options.config], overrides, request, written)
    return 0


def _bench(arguments: list[str]) -> int:
    import runpy

    from elas_lightning.layout import shipped_folder

    first, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if first == "--report":
        return _bench_report(rest)
    scripts = {path.stem.replace("_", "-"): path for path in shipped_folder("benchmarks").glob("*.py")}
    name = "tune" if first == "--tune" else first if first in _BENCHMARKS else "train-step"
    sys.argv = [os.path.relpath(scripts[name]), *(rest if first == "--tune" or name == first else arguments)]
    sys.path.insert(0, str(scripts[name].parent))  # where the scripts find each other
    runpy.run_path(str(scripts[name]), run_name="__main__")
    return 0


def _bench_report(arguments: list[str]) -> int:
    from pathlib import Path

    from elas_lightning.analysis.benchmarks import write_benchmark_report

    parser = argparse.ArgumentParser("elas bench --report")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("benchmarks/results"), help="of records")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="where the page goes")
    options = parser.parse_args(arguments)
    print(f"report: {write_benchmark_report(options.folder, options.out)}")
    return 0


def _stopped(number: int) -> int:
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    return 128 + number
