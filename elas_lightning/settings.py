"""What Lightning and jsonargparse let pass, or complain of without a name, said before anything is made."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from elas_lightning.errors import UserError

# Sections of an overlay that hold others.
_SECTIONS = (
    "model",
    "model.config",
    "model.config.sparsity",
    "model.config.weights",
    "model.config.experts",
    "model.optimizer",
    "data",
    "trainer",
    "checkpoint",
)
_PLAIN = ("seed_everything", "ckpt_path", "weights_only", "verbose")
_LEAST = {
    "trainer.num_nodes": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.val_check_interval": 1,
    "checkpoint.every_n_train_steps": 1,
    "checkpoint.save_top_k": -1,
}
LARGEST_SEED = 2**32 - 1
# Lightning's that do harm here, and what to give in their place.
_CALLBACKS = {
    "BackboneFinetuning": "looks for a backbone, which the model has none of: leave it out",
    "BatchSizeFinder": "would choose another data.batch_size, on which the order of the data depends: give one",
    "GradientAccumulationScheduler": "is forgotten when a run goes on: give trainer.accumulate_grad_batches",
    "LearningRateFinder": "looks for a setting that is not there: `make sweep EXP=lr_sweep` tries rates",
    "OnExceptionCheckpoint": "saves in the midst of a step, so that going on would skip its rows: leave it out, the "
    "last checkpoint between two steps is kept anyway",
    "StochasticWeightAveraging": "averages at the end of epochs, which a stream has none of, and takes the schedule's "
    "place: leave it out",
    "Timer": "ends training in the midst of a step, as if the run were complete: give trainer.max_time",
}


def check_overlays(arguments: Sequence[str]) -> None:
    """Read the overlays of a command line, for what the parser would say without the file's name, or not at all.

    Raises:
        UserError: One is missing, is not YAML, is no mapping, or has a section that is none.
    """
    for path in _overlays(arguments):
        _check_overlay(path, _read(path))


def _overlays(arguments: Sequence[str]) -> Iterator[Path]:
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            if equals:
                yield Path(value)
            elif place + 1 < len(arguments):
                yield Path(arguments[place + 1])


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"the overlay {path} cannot be read ({error.strerror}): give a YAML file, e.g. of experiments/"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise UserError(f"the overlay {path} is not YAML ({why}): mend it") from error


def _check_overlay(path: Path, content: Any) -> None:
    known = [*_PLAIN, *(name for name in _SECTIONS if "." not in name)]
    if not isinstance(content, dict):
        what = "empty" if content is None else "no mapping"
        raise UserError(
            f"the overlay {path} is {what}: stack a size overlay and others of experiments/, which are mappings of "
            f"{', '.join(known)}"
        )
    if unknown := [key for key in content if key not in known]:
        raise UserError(f"the overlay {path} has an unknown key {unknown[0]!r}: there are {', '.join(known)}")
    for section in _SECTIONS:
        inner = content
        for name in section.split("."):
            if name not in inner:
                break
            inner = inner[name]
            if not isinstance(inner, dict):
                raise UserError(f"the overlay {path} has {section}: {inner!r}, which must hold keys of its own")


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse settings that fail late, or not at all.

    Args:
        config: The parsed configuration.

    Raises:
        UserError: One is out of range, or does harm here.
    """
    for key, least in _LEAST.items():
        section, name = key.split(".")
        value = config[section][name]
        if value is None or isinstance(value, bool):
            continue
        if not isinstance(value, int) or value < least:
            raise UserError(f"{key} is {value!r}: give a whole number, {least} or more")
    _check_trainer(config["trainer"])
    _check_checkpoint(config["checkpoint"])
    seed = config["seed_everything"]
    if isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed_everything is {seed}: give a whole number from 0 to {LARGEST_SEED}")


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    clip = trainer["gradient_clip_val"]
    if clip is not None and not 0 <= clip < math.inf:
        raise UserError(f"trainer.gradient_clip_val is {clip}: give a finite number, 0 or more")
    for name in ("limit_train_batches", "max_epochs"):
        if trainer[name] == 0:
            raise UserError(f"trainer.{name} is 0, which trains nothing: leave it out, trainer.max_steps ends a run")
    limit = trainer["limit_train_batches"]
    if limit is not None and (isinstance(limit, int) or limit != 1.0):
        raise UserError(
            f"trainer.limit_train_batches is {limit}, after which Lightning would begin again with the same batches: "
            "leave it out, trainer.max_steps ends a run"
        )
    if overfit := trainer["overfit_batches"]:
        raise UserError(
            f"trainer.overfit_batches is {overfit}, which a run cannot go on with: leave it out, and give data.path a "
            "folder of few documents"
        )
    callbacks = trainer["callbacks"] or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = callback["class_path"].rpartition(".")[2]
        if name in _CALLBACKS:
            raise UserError(f"trainer.callbacks: {name} {_CALLBACKS[name]}")


def _check_checkpoint(checkpoint: Mapping[str, Any]) -> None:
    if checkpoint["dirpath"] is not None:
        raise UserError(
            f"checkpoint.dirpath is {checkpoint['dirpath']}, but checkpoints lie in the run's own directory, "
            "where going on looks for them: leave it out, or give another --trainer.default_root_dir"
        )
    name = checkpoint["filename"] or ""
    if "/" in name or name == "previous" or not _can_be_filled_in(name):
        raise UserError(
            f"checkpoint.filename is {name!r}: give the name of a file in the run's checkpoints, such as {{step}}, "
            "without / or a brace that is not closed, and not previous"
        )
    if checkpoint["save_on_exception"]:
        raise UserError(
            "checkpoint.save_on_exception is true, which saves in the midst of a step, so that going on would skip its "
            "rows: leave it out, the last checkpoint between two steps is kept anyway"
        )


def _can_be_filled_in(name: str) -> bool:
    try:
        return all(field != "" for _, field, _, _ in Formatter().parse(name))
    except ValueError:
        return False
