"""The two ways a run ends before its last step: with an early verdict, or stopped so that it can go on later.

Ctrl-C and SIGTERM end a run between two optimizer steps, with a checkpoint of exactly that place.
"""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L


class RunEnded(Exception):
    """The run is over before its last step, and that is its result.

    Args:
        state: ``diverged`` or ``pruned``.
        reason: One line for the result file.
    """

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(f"{state}: {reason}")
        self.state = state
        self.reason = reason


class Interrupted(BaseException):
    """The run was asked to stop, has saved itself and can be resumed.

    A ``BaseException``, like ``KeyboardInterrupt``: nobody's ``except Exception`` should take it for a failure.

    Args:
        signal_number: What asked for it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopBetweenSteps(L.Callback):
    """Turns the first SIGINT or SIGTERM into a clean stop; a second one is Python's own business again.

    Lightning's answer to Ctrl-C saves in the middle of a step, when the batch has been taken from the stream but
    not yet learned from: resuming would skip it. Here the handler only sets a flag.

    Args:
        checkpoint: Where the checkpoint goes.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._asked_by: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if between_steps and trainer.strategy.reduce_boolean_decision(self._asked_by is not None, all=False):
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(self._asked_by or signal.SIGTERM)

    # not in teardown: by then Lightning has given back the handlers that were there before its own
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked_by = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
