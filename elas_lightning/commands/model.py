"""``elas generate``, ``eval``, ``export`` and ``import``: what is done with a trained model."""

import argparse
import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from elas_lightning.errors import UserError
from elas_lightning.files import make_room

_MODEL = "a *.ckpt, a run's directory, or a folder of `elas export --form factors` or `elas import`"


def add(commands: Any) -> None:
    """Declare the subcommands."""
    generate = commands.add_parser("generate", help="continue a text with a trained model")
    _add_model(generate)
    generate.add_argument("prompt", help="the text to continue; - reads it from standard input")
    generate.add_argument(
        "--max-new-tokens", type=int, default=200, metavar="N", help="stop after N tokens (default: 200)"
    )
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0: the likeliest token each time (default); 1: sample"
    )
    generate.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens that have this share of the probability (default: 1)",
    )
    generate.add_argument("--seed", type=int, default=0, help="of the sampling")
    generate.add_argument("--device", default="cpu", help="where to run, e.g. cuda")
    generate.set_defaults(run=_generate)

    export = commands.add_parser("export", help="write a trained model as a folder for transformers, or for elas")
    _add_model(export)
    export.add_argument("folder", help="where to write; a new folder")
    export.add_argument(
        "--form",
        choices=("merged", "factors"),
        default="merged",
        help="merged: for transformers, factors multiplied out, 2:4 step left off (default); "
        "factors: for elas, exactly as trained",
    )
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    export.add_argument(
        "--eval-tokens",
        type=int,
        default=100_000,
        metavar="N",
        help="validation tokens on which to measure what leaving off 2:4 does; 0: none",
    )
    export.set_defaults(run=_export)

    import_ = commands.add_parser("import", help="take over a Llama or Arcee folder of Hugging Face")
    import_.add_argument("source", help="a local folder with config.json, safetensors and tokenizer.json")
    import_.add_argument("folder", help="where to write; a new folder")
    import_.add_argument("--rank", type=int, help="cut every matrix of attention and FFN to this rank (default: full)")
    import_.add_argument("--tokenizer", help="a tokenizer.json from elsewhere")
    import_.set_defaults(run=_import)

    _add_eval(commands.add_parser("eval", help="measure a checkpoint: perplexity on text, downstream tasks of lm-eval"))


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=_MODEL)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help=_MODEL)
    parser.add_argument(
        "--text",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="UTF-8 text, C4-format shards (.jsonl, .json.gz), or folders of them",
    )
    parser.add_argument("--tasks", type=_names, default=[], metavar="NAME,...", help="tasks of lm-eval, e.g. arc_easy")
    parser.add_argument("--include", type=Path, metavar="FOLDER", help="a folder of task files (YAML) of your own")
    parser.add_argument("--dense", action="store_true", help="measure again with the 2:4 step switched off")
    parser.add_argument("--length", type=int, help="tokens the model sees at once (default: as in training)")
    parser.add_argument(
        "--stride", type=int, help="tokens from one window of a document to the next (text; default: length)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="windows or requests at a time (default: 16)")
    parser.add_argument("--limit", type=int, help="documents of each text and examples of each task at most")
    parser.add_argument("--num-fewshot", type=int, help="examples in the prompt (default: what the task says)")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found to this file")
    parser.set_defaults(run=_eval)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _generate(options: argparse.Namespace) -> int:
    from elas_lightning.inference.generate import print_continuation
    from elas_lightning.inference.load import load_model

    trained = load_model(options.model, options.device)
    try:
        prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt is not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        print_continuation(
            trained,
            prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
        )
    except KeyboardInterrupt:  # there is nothing to go on with, as `main` would say
        print()
        return 128 + signal.SIGINT
    return 0


def _eval(options: argparse.Namespace) -> int:
    from rich.console import Console

    from elas_lightning.inference import evaluate

    # of the tasks' files, which are not the reader's to mend
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    given = {key: value for key, value in vars(options).items() if key not in ("run", "json", "arguments")}
    request = evaluate.Evaluation(**given, command=shlex.join(["elas", *options.arguments]))
    if options.json:
        make_room(options.json, "--json")
    found = evaluate.evaluate(request)
    evaluate.show(found, Console(markup=False))  # brackets in a name are a part of it
    if options.json:
        evaluate.write(found, options.json)
        print(f"results: {options.json}")
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
        print(
            f"perplexity with the 2:4 step {done.effect.kept:.2f}, without {done.effect.dropped:.2f} "
            f"({done.effect.per_cent:+.2f} %, {done.effect.tokens:,} tokens)"
        )
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
