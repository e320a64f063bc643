"""The two ways a run ends before its last step: with an early verdict, or stopped so that it can go on later.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (a scheduler's warning) end a run between two optimizer steps, with a checkpoint
of exactly that place.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
    """The run was asked to stop, and can be resumed.

    A ``BaseException``, like ``KeyboardInterrupt``: nobody's ``except Exception`` should take it for a failure.

    Args:
        signal_number: What asked for it.
        together: Whether all ranks stop, with a checkpoint; else this one leaves alone, before training or after it.
    """

    def __init__(self, signal_number: int, together: bool = True) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.together = together


def is_between_steps(trainer: L.Trainer) -> bool:
    """Whether the batch that has just been trained on was the last of an optimizer step."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


def can_go_on_after_batch(trainer: L.Trainer) -> bool:
    """Whether a run can go on exactly from behind the batch just trained on: a step is over, no validation is due."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return is_between_steps(trainer) and not loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def can_go_on_after_validation(trainer: L.Trainer) -> bool:
    """The same from behind a validation, which must be one of training."""
    in_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return in_training and is_between_steps(trainer)


class StopBetweenSteps(L.Callback):
    """Turns a signal, or a time that is over, into a clean stop; a second Ctrl-C is Python's own business again.

    Lightning's answer to Ctrl-C saves in the middle of a step, when the batch has been taken from the stream but
    not yet learned from: resuming would skip it. Its answer to SIGTERM broadcasts from within the handler, which
    hangs several ranks. Here the handler only sets a flag, which the ranks look at together after each step, or
    after the validation that is due there. While nothing is trained, there is nothing to save, and a signal ends the
    process at once.

    ``trainer.max_time`` ends up here, too: Lightning's timer ends training in the midst of a step, and as if all
    were done.

    Args:
        checkpoint: Where the checkpoint goes.
        seconds: How long to train, from each time that the run is taken up; then it stops as at SIGUSR1.
    """

    def __init__(self, checkpoint: Path, seconds: float = math.inf) -> None:
        self.checkpoint = checkpoint
        self._seconds = seconds
        self._deadline = math.inf
        self._asked_by = 0
        self._training = False
        self._previous: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._asked_by > 0

    @contextmanager
    def listening(self, trainer: L.Trainer) -> Iterator[None]:
        """Answer signals, instead of Lightning, for as long as the context lasts."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            self._training = False
            while self._previous:
                number, handler = self._previous.popitem()
                signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training = True
        self._deadline = time.monotonic() + self._seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if can_go_on_after_batch(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if can_go_on_after_validation(trainer):
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training = False

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if not self._asked_by and time.monotonic() >= self._deadline:
            self._asked_by = signal.SIGUSR1
        if trainer.strategy.reduce_boolean_decision(self._asked_by > 0, all=False):
            asked = torch.tensor(self._asked_by, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(asked, reduce_op="max"))
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(number)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            raise Interrupted(number, together=False)
        self._asked_by = number
        # schedulers repeat themselves; a person who presses Ctrl-C again means it
        signal.signal(signal.SIGINT, self._previous.get(signal.SIGINT, signal.default_int_handler))
