"""A run that stops in the middle of a step, and what it must have in common with one that never stopped."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
from csv_rows import rows_of
from lightning.pytorch.callbacks import Callback

_COLUMNS = ("step", "tokens", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte", "lr", "loss_spike")


class StopAfter(Callback):
    """Sends this process a signal as the last of ``batches`` begins."""

    def __init__(self, batches: int, number: int = signal.SIGTERM) -> None:
        self.batches, self.number = batches, number

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.batches:
            os.kill(os.getpid(), self.number)


def curve(directory: Path) -> list[tuple[str, ...]]:
    """All of ``curve.csv`` that does not depend on the clock."""
    return [tuple(row[column] for column in _COLUMNS) for row in rows_of(directory / "curve.csv")]
