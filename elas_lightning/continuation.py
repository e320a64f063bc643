"""Which run ``elas fit`` goes on with: the same command continues what it began, whatever stopped it."""

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment

from elas_lightning.errors import UserError
from elas_lightning.files import write_atomically
from elas_lightning.layout import CONFIG_NAME, RESULT_NAME, RUNS, checkpoint_folder, new_run_directory
from elas_lightning.processes import handed_over, handing_over, hold, is_first_rank
from elas_lightning.training.checkpoints import candidates, newest_usable, read, take_up, verify
from elas_lightning.training.folder_checkpoints import files_of

# What ``--ckpt_path`` may say besides a path.
LAST, NEW = "last", "new"

# A run that goes on may have other values here: they change where and how fast it runs, not what it computes. (Steps
# are made of the same rows on another number of devices if trainer.accumulate_grad_batches follows, and
# trainer.val_check_interval with it, which counts the micro-batches of one device.)
_FREE = (
    "checkpoint", "ckpt_path", "data.cache_dir", "data.num_workers", "data.validation_batch_size",
    "model.compile", "model.config.backend", "model.config.checkpointing", "model.config.ffn_storage",
    "trainer.accelerator", "trainer.accumulate_grad_batches", "trainer.barebones", "trainer.benchmark",
    "trainer.default_root_dir", "trainer.detect_anomaly", "trainer.devices", "trainer.enable_checkpointing",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.logger", "trainer.max_time",
    "trainer.num_nodes", "trainer.plugins", "trainer.profiler", "trainer.strategy", "trainer.sync_batchnorm",
    "trainer.use_distributed_sampler", "trainer.val_check_interval", "weights_only",
)  # fmt: skip


@dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Args:
        directory: The run's.
        checkpoint: What it goes on from; ``None`` for its first step.
    """

    directory: Path
    checkpoint: Path | None

    @property
    def finished(self) -> bool:
        """Whether the run has its result, so that nothing is left to do."""
        return (self.directory / RESULT_NAME).exists()


def begin(config: dict[str, Any], held: ExitStack) -> Beginning:
    """Choose the directory and the checkpoint of ``elas fit``, and hold the directory.

    Args:
        config: The resolved configuration.
        held: Gives the directory back when it is closed.

    Raises:
        UserError: There is nothing to go on with although it was asked for, or another run or process is in the way.
    """
    handed = handed_over()
    if handed is not None:
        return Beginning(Path(handed["directory"]), Path(handed["checkpoint"]) if handed["checkpoint"] else None)
    wish: str | None = config["ckpt_path"]
    directory = _asked_for(config)
    beginning = _anywhere(config, wish, held) if directory is None else _in(directory, config, wish, held)
    if is_first_rank() and not beginning.finished:
        _note(beginning, config, held)
    return beginning


def _asked_for(config: dict[str, Any]) -> Path | None:
    """The directory that the user, or the job, names; where several processes were started it must have a name."""
    given = config["trainer"]["default_root_dir"]
    if given is not None:
        return Path(given)
    if SLURMEnvironment.detect() and SLURMEnvironment.job_id() is not None:
        return RUNS / "fit" / f"slurm-{SLURMEnvironment.job_id()}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or config["trainer"]["num_nodes"] > 1:
        raise UserError(
            "several processes were started on this run and must agree on its directory: give "
            "--trainer.default_root_dir DIR"
        )
    return None


def _in(directory: Path, config: dict[str, Any], wish: str | None, held: ExitStack) -> Beginning:
    """Begin, or go on, in a directory."""
    first = is_first_rank()
    explicit = None if wish == LAST else _explicit(wish)  # before anything is made
    if first:
        held.enter_context(hold(directory))
    stored, folder = _stored_config(directory), checkpoint_folder(directory)
    if stored is not None and (different := differences(config, stored)):
        raise UserError(
            f"{directory} holds a run of another configuration: {'; '.join(different)}: give another "
            "--trainer.default_root_dir, or the configuration of that run"
        )
    finished = (directory / RESULT_NAME).exists()
    if (finished or stored is not None) and wish == NEW:
        raise UserError(
            f"--ckpt_path {NEW}: {directory} holds a run already: give another --trainer.default_root_dir or delete it"
        )
    if finished:
        return Beginning(directory, None)
    if wish not in (None, LAST):
        return Beginning(directory, explicit)
    checkpoint = take_up(folder) if first else newest_usable(folder)
    if checkpoint is None and wish == LAST:
        raise UserError(f"--ckpt_path {LAST}: there is no checkpoint in {folder}; leave it out to begin the run")
    return Beginning(directory, checkpoint)


def _anywhere(config: dict[str, Any], wish: str | None, held: ExitStack) -> Beginning:
    """Go on with the newest unfinished run of the same configuration that nobody is at work on, or begin a new one."""
    configured = [path.parent for path in (RUNS / "fit").glob(f"*/{CONFIG_NAME}")] if wish in (None, LAST) else []
    for directory in sorted(configured, key=lambda path: path.name, reverse=True):
        stored = _stored_config(directory)
        if stored is None or differences(config, stored):
            continue
        mine = ExitStack()
        try:
            mine.enter_context(hold(directory))
        except UserError:  # it is running
            continue
        if not (directory / RESULT_NAME).exists():
            held.push(mine)
            return Beginning(directory, take_up(checkpoint_folder(directory)))
        mine.close()
    if wish == LAST:
        raise UserError(
            f"--ckpt_path {LAST}: below {RUNS / 'fit'}/ there is no unfinished run of this configuration that no "
            "other process is at work on; leave it out to begin a new one"
        )
    checkpoint = _explicit(wish)
    directory = new_run_directory("fit")
    held.enter_context(hold(directory))
    return Beginning(directory, checkpoint)


def checkpoint_of(path: Path, or_else: str = "") -> Path:
    """The checkpoint that a path stands for: itself, or the newest of a run's directory.

    Args:
        path: A file, a sharded checkpoint's folder, or a run's directory.
        or_else: What else the user may give, for the message.

    Raises:
        UserError: A directory without a checkpoint.
    """
    if not os.path.isdir(path) or files_of(path):  # unlike a Path's own, it is false where a name is too long
        return path
    inside = candidates(checkpoint_folder(path))
    if not inside:
        raise UserError(
            f"there is no checkpoint in {path}: give the directory of a run of `elas fit`{or_else} or a *.ckpt file "
            "(a sweep removes the checkpoints of finished runs)"
        )
    return inside[0]


def given_checkpoint(path: str) -> Path:
    """The checkpoint that ``--ckpt_path`` names, which can be read.

    Raises:
        UserError: There is none, it is torn, or it is something else.
    """
    checkpoint = checkpoint_of(Path(path))
    verify(checkpoint)
    read(checkpoint, mmap=True)  # which refuses what is whole but no checkpoint
    return checkpoint


def _explicit(wish: str | None) -> Path | None:
    """The checkpoint whose path was given."""
    return None if wish in (None, NEW) else given_checkpoint(wish)


def _note(beginning: Beginning, config: dict[str, Any], held: ExitStack) -> None:
    """Say what is gone on with, keep the configuration for the next time, and tell the ranks that are started now."""
    directory, checkpoint = beginning.directory, beginning.checkpoint
    if checkpoint is not None:
        step = read(checkpoint, mmap=True)["global_step"]
        print(f"going on with {directory} from step {step} ({checkpoint}); --ckpt_path {NEW} begins a new run")
    elif (directory / CONFIG_NAME).exists():
        print(f"going on with {directory}, which has no checkpoint yet; --ckpt_path {NEW} begins a new run")
    text = yaml.safe_dump(config, sort_keys=False)
    write_atomically(directory / CONFIG_NAME, lambda file: file.write(text.encode()))
    values = {"directory": str(directory), "checkpoint": None if checkpoint is None else str(checkpoint)}
    held.enter_context(handing_over(values))


def _stored_config(directory: Path) -> dict[str, Any] | None:
    """What a run's directory says of its configuration, if anything.

    Raises:
        UserError: It cannot be read.
    """
    path = directory / CONFIG_NAME
    try:
        if path.exists():
            stored = yaml.safe_load(path.read_text())
        elif (directory / RESULT_NAME).exists():  # a sweep's
            stored = json.loads((directory / RESULT_NAME).read_text())["config"]
        else:
            return None
        return dict(stored)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{directory} holds a run whose configuration cannot be read: delete it ({error})") from error


def differences(mine: dict[str, Any], stored: dict[str, Any], prefix: str = "") -> list[str]:
    """Say each value that differs from a stored configuration and is not free to.

    Keys that only one of the two has are of another version of the project, and the checkpoint is checked anyway.
    """
    found = []
    for key, value in mine.items():
        name = prefix + key
        if key not in stored or name in _FREE or value == stored[key]:
            continue
        if isinstance(value, dict) and isinstance(stored[key], dict):
            found += differences(value, stored[key], f"{name}.")
        else:
            found.append(f"{name} is {value!r} but the run has {stored[key]!r}")
    return found
