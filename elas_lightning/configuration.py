"""From overlays of YAML and dotted overrides to objects: the one way a run is configured.

``elas fit`` and every run of a sweep go through :class:`ElasCLI`, a LightningCLI, so that what a sweep ran
can be repeated with ``elas fit --config …`` and the other way round.
"""

import argparse
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Sequence
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback, ProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from elas_lightning.data.module import C4DataModule
from elas_lightning.errors import UserError
from elas_lightning.layout import checkpoint_folder, new_run_directory
from elas_lightning.nn.config import ModelConfig
from elas_lightning.settings import check_overlays, check_settings
from elas_lightning.training.checkpoints import CheckpointBetweenSteps, SafeCheckpointIO
from elas_lightning.training.host_memory import keep_freed_memory
from elas_lightning.training.interruption import StopBetweenSteps
from elas_lightning.training.live import LiveProgress
from elas_lightning.training.module import ElasModule
from elas_lightning.training.monitors import MonitorCheck
from elas_lightning.training.optimizers import OptimizerConfig
from elas_lightning.training.progress import StepProgressBar
from elas_lightning.training.randomness import RandomStates
from elas_lightning.training.recorder import RunRecorder
from elas_lightning.training.sharding import check_trainer

CHECKPOINT_NAME, BEST_NAME = "last", "best"

# A stream without an end has no epochs: its length is trainer.max_steps and validation counts batches.
_TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}


class ElasCLI(LightningCLI):
    """LightningCLI for :class:`ElasModule` and :class:`C4DataModule`.

    After construction ``trainer``, ``model``, ``datamodule``, ``directory`` (the run's own) and
    ``resolved`` (the whole configuration as plain types) are set.

    Args:
        args: Command line as a list; ``None`` takes ``sys.argv``.
        run: Whether the first argument is a subcommand to run.
        callbacks: Added to those that every run has.
    """

    directory: Path
    recorder: RunRecorder
    stop: StopBetweenSteps

    def __init__(self, args: list[str] | None = None, *, run: bool, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks)
        self.arguments = list(sys.argv[1:] if args is None else args)
        one_line: dict[str, Any] = {"exit_on_error": False}
        _whole_numbers_first()
        try:
            super().__init__(
                ElasModule,
                C4DataModule,
                args=self.arguments,
                run=run,
                save_config_callback=None,
                trainer_defaults=_TRAINER_DEFAULTS,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={
                    **one_line,
                    "prog": "elas",
                    **(dict.fromkeys(self.subcommands(), one_line) if run else {}),
                },
            )
        except argparse.ArgumentError as error:
            raise UserError(_in_one_line(str(error))) from error

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning calls it on the object, too
        """``fit`` and ``validate``; training ends with a validation, so there is no ``test``."""
        names = {"fit", "validate"}
        # the parser of each takes longer to build than to use: only that of the typed one is
        return {
            name: {"model", "dataloaders", "datamodule", "train_dataloaders", "val_dataloaders"}
            for name in names.intersection(self.arguments[:1]) or sorted(names)
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(CheckpointBetweenSteps, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": CHECKPOINT_NAME,
                "checkpoint.every_n_train_steps": 100,
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # LightningCLI's own version warns whenever arguments are given while sys.argv holds some too
        check_overlays(args)
        self.config = parser.parse_args(args)
        check_settings(self.config.get(str(self.config.get("subcommand")), self.config))

    def _parse_ckpt_path(self) -> None:
        """Do nothing: LightningCLI would let the checkpoint's hyperparameters override the command line in silence.

        :meth:`ElasModule.on_load_checkpoint` refuses a checkpoint that does not fit instead.
        """

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except ValueError as error:  # jsonargparse's, of a logger or a callback that cannot be made
            raise UserError(f"trainer: {_in_one_line(str(error))}") from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        self.directory = self.choose_directory(config["default_root_dir"])
        self.recorder = RunRecorder(self.directory)
        self.stop = StopBetweenSteps(self.checkpoint_path, _in_seconds(config["max_time"]))
        checkpoint = self._get(self.config_init, "checkpoint")
        checkpoint.dirpath = str(checkpoint_folder(self.directory))
        if checkpoint.monitor is not None and checkpoint.filename == CHECKPOINT_NAME:
            checkpoint.filename = BEST_NAME  # a stop would put the latest in its place
        given = [*_as_list(config["callbacks"]), *self._callbacks]
        own_bar = any(isinstance(callback, ProgressBar) for callback in given)
        if config["enable_progress_bar"] is not False and not own_bar:
            given.append(StepProgressBar())
        # the dump shows what the user configured, not what was derived here
        kwargs["default_root_dir"] = str(self.directory)
        kwargs["max_time"] = None
        live = LiveProgress(self.directory, self.recorder, self.stop)
        # the random state comes back before, and a stop saves after, what the others do at the same place
        kwargs["callbacks"] = [RandomStates(), self.recorder, live, MonitorCheck(), *given, self.stop]
        kwargs["plugins"] = [*_as_list(config["plugins"]), SafeCheckpointIO()]
        if config["logger"] in (None, True):
            # a version for each time the run is taken up: CSVLogger deletes what it finds in its folder
            table = CSVLogger(self.directory, name="logs")
            kwargs["logger"] = [table, TensorBoardLogger(self.directory, name="logs", version=table.version)]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:  # all mean a setting
            raise UserError(f"trainer: {_in_one_line(str(error))}") from error
        check_trainer(trainer)
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        return trainer

    def choose_directory(self, given: str | None) -> Path:
        """The run's own directory."""
        return Path(given) if given else new_run_directory(self.subcommand or "run")

    @property
    def checkpoint_path(self) -> Path:
        """The rolling checkpoint of the run."""
        return checkpoint_folder(self.directory) / f"{CHECKPOINT_NAME}.ckpt"

    @property
    def resolved(self) -> dict[str, Any]:
        """The configuration with every default filled in, as plain types."""
        parser = self._parser(self.subcommand)
        config = self.config[self.subcommand] if self.subcommand else self.config
        # as JSON, in which results keep it, and which is read in a fraction of the time that YAML takes
        plain: dict[str, Any] = json.loads(parser.dump(config, skip_unset=False, skip_validation=True, format="json"))
        plain.pop("config", None)
        return plain


class _ParseOnly(ElasCLI):
    """The parser without the objects."""

    def instantiate_classes(self) -> None:
        pass

    def _set_seed(self) -> None:
        pass


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _in_seconds(max_time: Any) -> float:
    """``trainer.max_time``, in one of the forms that Lightning takes."""
    if max_time is None:
        return math.inf
    try:
        seconds = Timer(max_time).time_remaining()
    except (MisconfigurationException, TypeError) as error:
        raise UserError(f"trainer.max_time: {_in_one_line(str(error))}") from error
    assert seconds is not None
    return seconds


def _in_one_line(message: str) -> str:
    """jsonargparse's message without its line breaks, and with advice where it has none.

    Where it has tried several types, it lists what each had against the value: what is said of the class that was named
    is the one to read.
    """
    line = re.sub(r"\s+", " ", message).strip()
    if line.startswith("unrecognized arguments"):
        return f"{line}; `elas fit --help` lists the keys"
    tried = line.partition(" Errors: - ")[2].split(" - ")
    telling = [said for said in tried if said and not said.startswith(("Expected a <class", "Expected a typing"))]
    if not telling:
        return line
    key = re.match(r'Parser key "([^"]+)"', line)
    said = telling[0].partition(" Given value")[0].removesuffix(" Errors:")
    return f"{key[1]}: {said}" if key else said


def resolve(overlays: Sequence[Path], overrides: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration of a stack of overlays, as plain types, without building anything.

    Raises:
        UserError: An unknown key or a value of the wrong type.
    """
    cli = _parse_only()
    try:
        cli.parse_arguments(cli.parser, command_line(overlays, overrides))
    except argparse.ArgumentError as error:
        raise UserError(_in_one_line(str(error))) from error
    return cli.resolved


def _whole_numbers_first() -> None:
    """Let ``trainer.limit_val_batches=1`` be one batch, and ``1.0`` all of them, whatever was imported before.

    jsonargparse tries the types of a union in their order, and ``typing`` gives whoever asks for
    ``Optional[Union[int, float]]`` an earlier ``Optional[Union[float, int]]``, such as Lightning has too.
    """
    hints = L.Trainer.__init__.__annotations__
    for name, hint in hints.items():
        if {int, float} <= set(get_args(hint)):
            hints[name] = reduce(or_, get_args(hint), int)


@cache
def _parse_only() -> _ParseOnly:
    """One for all stacks, since to build the parser takes longer than to use it."""
    return _ParseOnly([], run=False)


def check(overlays: Sequence[Path], overrides: dict[str, Any]) -> None:
    """Refuse a configuration that cannot be run; nothing that takes time is built.

    Raises:
        UserError: As :func:`resolve`, or the model, its optimizer or its data are impossible.
    """
    config = resolve(overlays, overrides)
    ModelConfig.from_mapping(config["model"]["config"])
    optimizer = OptimizerConfig(**config["model"]["optimizer"])
    if not config["trainer"]["fast_dev_run"]:
        optimizer.check_length(config["trainer"]["max_steps"])
    C4DataModule(**config["data"])


def command_line(overlays: Sequence[Path], overrides: dict[str, Any]) -> list[str]:
    """The arguments of ``elas fit`` that stack ``overlays`` and set ``overrides`` (dotted key to value).

    Values are written as flow YAML, which the parser reads back as they were; text as it is, since where it is one of
    several types the parser would take YAML's quotes for a part of it.
    """
    arguments = [part for path in overlays for part in ("--config", str(path))]
    return arguments + [
        f"--{key}={value if isinstance(value, str) else as_yaml(value)}" for key, value in overrides.items()
    ]


def as_yaml(value: Any) -> str:
    """A value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize)
    return text.removesuffix("\n").removesuffix("...").strip()


def quiet_lightning() -> None:
    """Drop Lightning's greetings (devices found, tips for its cloud), keep its warnings."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # of torch 2.13's about Lightning 2.6's use of it: nothing a user can do
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    # the directory of a run that is being resumed is not empty, and is meant not to be
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    # a checkpoint may be measured, or gone on with, elsewhere; which others are kept there is settled there
    warnings.filterwarnings("ignore", message=r"The dirpath has changed from .* to ")
