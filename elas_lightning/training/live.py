"""A run and those who watch it from outside: ``progress.json`` and ``verdict.json`` in the run's directory.

Files rather than a connection: whoever shares the directory can watch, and under DDP it is rank 0 alone that writes
and reads, whatever process started the other ranks.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from elas_lightning.files import not_written, write_whole
from elas_lightning.training.interruption import RunEnded, StopBetweenSteps
from elas_lightning.training.recorder import RunRecorder

PROGRESS_NAME = "progress.json"
VERDICT_NAME = "verdict.json"
_WRITE_SECONDS = 1.0  # between two writes of progress
_VERDICT_SECONDS = 60.0  # to wait for a verdict before going on without
# The same where the run is told to stop: a worker that passes that on answers in tenths of a second; one that is gone
# will not.
_STOPPING_SECONDS = 2.0


class LiveProgress(L.Callback):
    """Keeps ``progress.json`` up to date and ends the run when ``verdict.json`` says so.

    A run is judged when ``verdict.json`` is there; whoever put it there answers each validation but the last with
    :func:`write_verdict`. The run waits for the answer, so that where it ends depends on the step alone.

    Args:
        directory: The run's directory.
        recorder: Knows the latest figures.
        stop: Knows whether the run has been asked to stop.
    """

    def __init__(self, directory: Path, recorder: RunRecorder, stop: StopBetweenSteps) -> None:
        self.directory = directory
        self._recorder = recorder
        self._stop = stop
        self._last = -math.inf

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write_now_and_then(trainer)

    # a long validation is no standstill
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._write_now_and_then(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._write(trainer)
        if trainer.global_step >= trainer.max_steps > 0:
            return  # what it came to is known; there is nothing left to save
        reason = self._await_verdict(trainer.global_step) if trainer.is_global_zero else None
        reason = trainer.strategy.broadcast(reason)
        self._recorder.start_window()  # the wait is not training's
        if reason is not None:
            raise RunEnded("pruned", reason)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def _write_now_and_then(self, trainer: L.Trainer) -> None:
        if time.monotonic() - self._last >= _WRITE_SECONDS:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._last = time.monotonic()
        recorder, loss = self._recorder, self._recorder.last_train_loss
        content = {
            "step": trainer.global_step,
            "max_steps": trainer.max_steps,
            "validated_step": recorder.last_validated_step,
            "tokens": recorder.tokens,
            "seconds": round(recorder.seconds, 3),
            "train_loss": loss if loss is not None and math.isfinite(loss) else None,
            "pid": os.getpid(),
            "time": time.time(),
        }
        _write_json(self.directory / PROGRESS_NAME, content)

    def _await_verdict(self, step: int) -> str | None:
        began = time.monotonic()
        while (verdict := _read(self.directory / VERDICT_NAME)) is not None:
            if verdict["step"] >= step:
                return verdict["reason"]
            if time.monotonic() - began >= (_STOPPING_SECONDS if self._stop.asked else _VERDICT_SECONDS):
                break
            time.sleep(0.02)
        return None


def read_progress(directory: Path) -> dict[str, Any] | None:
    """What the run in ``directory`` last said of itself; ``None`` if it has not said anything."""
    return _read(directory / PROGRESS_NAME)


def write_verdict(directory: Path, step: int, reason: str | None) -> None:
    """Answer the validation at ``step``: ``None`` lets the run go on, a reason ends it as ``pruned``.

    With ``step`` -1, before the run is started: it is going to be judged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / VERDICT_NAME, {"step": step, "reason": reason})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        write_whole(path, json.dumps(content))
    except OSError as error:
        raise not_written(path, error) from error
