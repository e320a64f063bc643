"""The commands' argument parser, and the values that more than one of them takes."""

import argparse
import math
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's parser, with complaints as everywhere else: one line, which says where to find help.

    Its subparsers are of the same kind.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (`{self.prog} --help` shows what there is)\n")


def override(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` of a command line, the value read as YAML."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. trainer.max_steps=50")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} has a value that is not YAML: close its brackets, and put a text with : or # into quotes"
        ) from error


def add_set(parser: argparse.ArgumentParser, text: str) -> None:
    """``--set KEY=VALUE``, as often as one likes; ``overrides`` of what is parsed."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", type=override, dest="overrides", help=text
    )


def minutes(text: str) -> float:
    """A span of time, in minutes."""
    given = float(text)
    if not 0 <= given < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no span of time: give minutes, 0 or more")
    return given


def at_least_one(text: str) -> int:
    """A count of something that there has to be."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small: give 1 or more")
    return number
