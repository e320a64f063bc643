"""``elas data``: token shards, and a look at what a model will see."""

import argparse
import os
from pathlib import Path
from typing import Any

from elas_lightning.commands.arguments import add_set


def add(commands: Any) -> None:
    """Declare the subcommands."""
    group = commands.add_parser("data", help="prepare token shards; inspect what a model will see of a corpus")
    actions = group.add_subparsers(title="actions", metavar="action", required=True)

    prepare = actions.add_parser(
        "prepare", help="tokenize a source once into memory-mapped shards; goes on where it was stopped"
    )
    _add_source(prepare)
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the token shards go")
    prepare.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes, each on one shard at a time (default: one a core)",
    )
    prepare.set_defaults(run=_prepare)

    inspect = actions.add_parser(
        "inspect", help="documents, tokens, padding, cut text and the first rows of a configuration"
    )
    _add_source(inspect)
    inspect.add_argument("--documents", type=int, default=4096, metavar="N", help="how many to measure (default: 4096)")
    inspect.add_argument("--rows", type=int, default=3, metavar="N", help="how many to print (default: 3)")
    inspect.add_argument(
        "--verify", action="store_true", help="read every file: token shards against their checksums, text to its end"
    )
    inspect.set_defaults(run=_inspect)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", action="append", default=[], type=Path, metavar="FILE", help="an overlay, as for fit; several stack"
    )
    add_set(parser, "set a dotted configuration key, e.g. data.sequence_length=512")
    for name, text in (
        ("source", "pydocs, c4, local or tokens"),
        ("path", "the source's folder"),
        ("tokenizer", "auto, a tokenizer.json or a name on the hub"),
    ):
        parser.add_argument(f"--{name}", help=f"data.{name}: {text}")


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {f"data.{name}": getattr(options, name) for name in ("source", "path", "tokenizer")}
    return {**dict(options.overrides), **{key: value for key, value in given.items() if value is not None}}


def _prepare(options: argparse.Namespace) -> int:
    from elas_lightning.commands.corpus import prepare

    prepare(options.config, _overrides(options), options.out, options.workers)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from elas_lightning.commands.corpus import inspect

    inspect(options.config, _overrides(options), options.documents, options.rows, options.verify)
    return 0
