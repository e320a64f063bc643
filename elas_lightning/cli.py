"""The ``elas`` command. Each subcommand imports what it needs when it runs, so that ``--help`` is instant."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from elas_lightning import __version__
from elas_lightning.commands import cost, data, model, study
from elas_lightning.commands.arguments import Parser
from elas_lightning.errors import NOT_WRITABLE, UserError, not_usable
from elas_lightning.processes import handed_over

_DESCRIPTION = "Pre-train low-rank language models with 2:4 sparse activations, and sweep over how."
_DIVERGED = 3
_LIGHTNING_COMMANDS = {
    "fit": "train a model: --config overlay.yaml (several stack), dotted overrides, --print_config",
    "validate": "measure a checkpoint: as fit, with --ckpt_path",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 2 for wrong input; 3 for a run that diverged; 128 + signal when stopped.

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
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:  # the reader, `head` perhaps, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        raise
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        print(f"error: {not_usable(error)}", file=sys.stderr)
        return 2
    except BaseException as stop:
        if hasattr(stop, "signal_number"):  # Interrupted, whose module would import torch
            # the first rank answers for those that it started: a code of theirs would have it killed by Lightning
            together = getattr(stop, "together", False)
            return 0 if handed_over() and together else _stopped(stop.signal_number)
        # what Lightning makes of a Ctrl-C before training begins, or of a second one
        if isinstance(stop, SystemExit) and isinstance(stop.__context__, KeyboardInterrupt):
            return _stopped(signal.SIGINT)
        raise


def _parse(arguments: list[str]) -> int:
    parser = Parser("elas", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"elas-lightning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for name, text in _LIGHTNING_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    for group in (study, model, data, cost):
        group.add(commands)
    if arguments[:1] == ["bench"]:
        return cost.bench(arguments[1:])
    options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    result: int = options.run(options)
    return result


def _lightning_command(arguments: list[str]) -> int:
    from elas_lightning.configuration import quiet_lightning
    from elas_lightning.runner import RunCommand

    quiet_lightning()
    cli = RunCommand(arguments)
    if cli.result is None or not cli.trainer.is_global_zero:
        return 0
    if cli.result.reason:
        print(f"{cli.result.state}: {cli.result.reason}", file=sys.stderr)
    print(f"results: {cli.directory}")
    return _DIVERGED if cli.result.state == "diverged" else 0


def _stopped(number: int) -> int:
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    return 128 + number
