"""Checkpoints that survive: written whole or not at all, read back before the previous one goes, two kept.

A checkpoint is what ``torch.save`` writes, a ZIP archive, which holds a checksum of each of its records; so file and
checksums cannot be torn apart, and any tool that reads PyTorch's files reads ours. (PyTorch itself does not look at
the checksums.) Where every process of a sharded run writes its part, it is a folder of such files
(``folder_checkpoints.py``). The newest is ``last.ckpt``; what it replaces becomes ``previous.ckpt``.
"""

import logging
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.distributed.tensor import DTensor

from elas_lightning.errors import UserError
from elas_lightning.files import TEMPORARY, write_atomically
from elas_lightning.training.folder_checkpoints import WHOLE_NAME, files_of, put_together, steps_of
from elas_lightning.training.interruption import can_go_on_after_batch, can_go_on_after_validation

logger = logging.getLogger(__name__)

PREVIOUS_NAME = "previous.ckpt"
# what the standard library makes of archives with a wrong bit somewhere
_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError)
_KEYS = {"state_dict", "global_step", "pytorch-lightning_version"}
_SUFFIX, _TORN = ".ckpt", ".torn"


class TornCheckpoint(UserError):
    """The file is not what was written."""


def verify(path: Path) -> None:
    """Read a checkpoint's file or files through, a piece at a time, and compare with their checksums.

    Raises:
        TornCheckpoint: It is torn, or no file that ``torch.save`` wrote.
        UserError: There is no such file, or it is a part of a folder.
    """
    if not (files := files_of(path)):
        if path.suffix == _SUFFIX and path.is_dir():  # a kill has come between its removal's steps
            raise TornCheckpoint(_torn(path, "its files are missing"))
        raise UserError(f"there is no checkpoint {path}; give the path of a *.ckpt file")
    if path.name == WHOLE_NAME:
        raise UserError(f"{path} is one file of the checkpoint {path.parent}: give that folder")
    for file in files:
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except _UNREADABLE as error:
            raise TornCheckpoint(_torn(path, str(error) or type(error).__name__)) from error
        if broken is not None:
            raise TornCheckpoint(_torn(path, f"the checksum of {broken} in {file.name} is wrong"))
    if len(files) > 1 and len(steps := steps_of(files)) > 1:
        raise TornCheckpoint(_torn(path, f"its files are of steps {' and '.join(map(str, sorted(steps)))}"))


def _torn(path: Path, why: str) -> str:
    return (
        f"the checkpoint {path} cannot be read ({why}): it is torn or not one of this project's; give another one, or "
        "delete it to begin the run again"
    )


def candidates(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first; the previous one, which another has replaced, last.

    A clock that was set back, or a copy of the folder, may give it the latest date.
    """
    by_age = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return sorted(by_age, key=lambda path: path.name == PREVIOUS_NAME)


def newest_usable(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; ``None`` where there is none at all.

    Args:
        folder: A run's checkpoints.

    Raises:
        TornCheckpoint: There are some, and all are torn.
    """
    torn: list[TornCheckpoint] = []
    found = candidates(folder)
    for path in found:
        try:
            verify(path)
        except TornCheckpoint as error:
            torn.append(error)
            continue
        if torn:
            newer = ", ".join(str(other) for other in found[: len(torn)])
            logger.warning("the newest checkpoint is torn (%s): going on from the one before, %s", newer, path)
        return path
    if len(torn) > 1:
        names = ", ".join(str(path) for path in found)
        raise TornCheckpoint(f"all checkpoints are torn ({names}): delete them to begin the run again")
    if torn:
        raise torn[0]
    return None


def take_up(folder: Path) -> Path | None:
    """Tidy a run's checkpoints and choose the one to go on from; only for the process that holds the run's folder.

    What killed writers left behind is removed. Torn checkpoints that are newer than the chosen one are renamed to
    ``*.torn``, so that a later save does not make one of them the previous checkpoint.

    Args:
        folder: A run's checkpoints; need not exist.

    Raises:
        TornCheckpoint: As :func:`newest_usable`.
    """
    for leftover in folder.glob(f"*{_SUFFIX}{TEMPORARY}"):
        remove(leftover)
    chosen = newest_usable(folder)
    if chosen is not None:
        found = candidates(folder)
        for path in found[: found.index(chosen)]:
            remove(path.with_suffix(_TORN))  # of another time: a folder's rename does not replace it
            os.replace(path, path.with_suffix(_TORN))
    return chosen


def remove(path: Path) -> None:
    """Remove a checkpoint, file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def retire(path: Path) -> None:
    """Make a checkpoint the previous one, which goes: two are always kept."""
    if path.exists() and path.name != PREVIOUS_NAME:
        previous = path.with_name(PREVIOUS_NAME)
        if path.is_dir() or previous.is_dir():  # which a rename does not replace
            remove(previous)
        os.replace(path, previous)


def read(
    path: Path, *, mmap: bool = False, combine: Callable[[Sequence[Tensor]], Tensor] | None = None
) -> dict[str, Any]:
    """A checkpoint's content, onto the CPU; never runs code that a file brings along.

    Args:
        path: The file or folder.
        mmap: Leave tensors on the disk until they are looked at.
        combine: Of a folder, what to make of the rows of a sharded tensor; None: the tensor.

    Raises:
        UserError: It cannot be read, or is not a checkpoint of a run.
    """
    try:
        if path.is_dir():
            content: Any = put_together(path, combine)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise TornCheckpoint(_torn(path, type(error).__name__)) from error
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        raise UserError(f"{path} is not the checkpoint of a run: it has not all of {', '.join(sorted(_KEYS))}")
    return content


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, in this process's share of it."""
    for name, tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.is_floating_point() and not bool(torch.isfinite(local).all()):
            return name
    return None


class SafeCheckpointIO(CheckpointIO):
    """How Lightning's strategies write and read one file: see the module's beginning."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write, verify, move what was there to ``previous.ckpt``.

        Raises:
            UserError: It cannot be written. What was there is untouched.
        """
        path = Path(path)

        def keep_previous(complete: Path) -> None:
            verify(complete)
            retire(path)

        write_atomically(path, lambda file: write_archive(checkpoint, file), keep_previous)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read, onto the CPU; ``weights_only`` is always on.

        Raises:
            UserError: It is torn, or holds more than tensors and plain types.
        """
        verify(Path(path))
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Make it the previous checkpoint, which goes: two are always kept."""
        retire(Path(path))


def write_archive(content: dict[str, Any], file: BinaryIO) -> None:
    """``torch.save``, whose complaint of a full disk is an ``OSError``."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # torch closes its archive even so, and complains that it is not what it should be
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


class CheckpointBetweenSteps(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which saves only where a run can go on exactly.

    That is between two optimizer steps (not between the micro-batches of one), and behind a validation that is due
    there: Lightning would leave it out when it goes on from a place before it.
    """

    @property
    def state_key(self) -> str:
        """One name, whatever the settings: Lightning's own warns when they differ from the checkpoint's."""
        return type(self).__qualname__

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if can_go_on_after_batch(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # a validation may lie in the midst of a step: what is due there waits for the next one
        if can_go_on_after_validation(trainer):
            super().on_train_batch_end(trainer, pl_module, None, None, trainer.fit_loop.batch_idx)
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what training has come to, which ``result.json`` tells of; a monitored metric chooses by itself.

        A callback may have ended it between two micro-batches: then the weights are those of the last step, and nobody
        goes on.
        """
        if self.monitor is None and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)
