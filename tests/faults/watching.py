"""Callbacks that a run's configuration names: they note what was trained on, or do harm."""

import hashlib
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class Seen(Callback):
    """Notes each trained batch, and numbers drawn at it: of this rank, in a file; cut back at a resume.

    Args:
        path: The file; each rank appends its number.
        pause: Seconds to rest at each batch, so that a run of milliseconds can be hit at any place of it.
    """

    def __init__(self, path: str, pause: float = 0.0) -> None:
        self.path = path
        self.pause = pause
        self._rows = 0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._file = Path(f"{self.path}.{trainer.global_rank}")
        lines = self._file.read_text().splitlines(keepends=True) if self._file.exists() else []
        self._file.write_text("".join(lines[: self._rows]))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        digest = hashlib.sha256(batch["input_ids"].numpy().tobytes() + batch["labels"].numpy().tobytes())
        drawn = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
        with self._file.open("a") as file:
            file.write(f"{trainer.global_step} {batch_idx} {digest.hexdigest()} {drawn}\n")
        self._rows += 1
        time.sleep(self.pause)


class Poison(Callback):
    """Makes a weight NaN, before a batch or behind it.

    Args:
        step: When.
        behind: Whether the step's loss has been looked at by then.
    """

    def __init__(self, step: int, behind: bool = False) -> None:
        self.step = step
        self.behind = behind

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._poison(trainer, pl_module, not self.behind)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._poison(trainer, pl_module, self.behind)

    def _poison(self, trainer: L.Trainer, pl_module: L.LightningModule, now: bool) -> None:
        if now and trainer.global_step == self.step:
            next(pl_module.parameters()).data.view(-1)[0] = float("nan")


class FullDisk(Callback):
    """Lets no file grow any more, from a step on; until whoever started the run undoes it.

    Args:
        step: When.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


class SignalAt(Callback):
    """Sends this process a signal, once: at a step, within a validation, or before training.

    Args:
        number: The signal.
        place: ``step``, ``validation`` or ``setup``.
        step: When.
    """

    def __init__(self, number: int, place: str, step: int = 0) -> None:
        self.number, self.place, self.step = number, place, step

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._send("setup", 0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._send("step", trainer.global_step)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._send("validation", trainer.global_step)

    def _send(self, place: str, step: int) -> None:
        if (place, step) == (self.place, self.step):
            self.place = "sent"
            os.kill(os.getpid(), self.number)
