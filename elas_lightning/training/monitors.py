"""Callbacks that watch a metric, and what they say when they end a run."""

from collections.abc import Iterable

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from elas_lightning.errors import UserError
from elas_lightning.training.checkpoints import CheckpointBetweenSteps
from elas_lightning.training.metrics import LOGGED

_KNOWN_PACKAGES = ("lightning", "elas_lightning")


class MonitorCheck(L.Callback):
    """Refuses a callback that watches a metric which nobody logs, and heeds one that has ended the run already.

    Of the former Lightning's ``EarlyStopping`` dies at the first validation, its ``ModelCheckpoint`` never saves. It
    is refused at the start where all callbacks are known to log nothing else, and at the first validation where some
    are the user's own, which may. Of the latter a run that was stopped, or killed, right behind the verdict knows from
    the callback's state alone: Lightning would train on.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if all(type(callback).__module__.partition(".")[0] in _KNOWN_PACKAGES for callback in callbacks):
            _check(callbacks, LOGGED)
        if _verdict(trainer) is not None:
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            _check(trainer.callbacks, trainer.callback_metrics)  # type: ignore[attr-defined]


def _verdict(trainer: L.Trainer) -> str | None:
    """What the callback that has ended the run says of it; ``None`` where none has, or it says nothing."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if message := getattr(callback, "stopping_reason_message", None):
            return f"{type(callback).__name__}: {message}"
    return None


def _check(callbacks: Iterable[L.Callback], metrics: Iterable[str]) -> None:
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and getattr(callback, "strict", True) and monitor not in metrics:
            ours = isinstance(callback, CheckpointBetweenSteps)
            who = "checkpoint.monitor is" if ours else f"trainer.callbacks: {type(callback).__name__} monitors"
            raise UserError(f"{who} {monitor!r}, which nothing logs: choose one of {', '.join(sorted(metrics))}")


def why_it_ended(trainer: L.Trainer) -> str | None:
    """What ended training before its last step, in words for the result file; ``None`` where nothing has."""
    if trainer.global_step >= trainer.max_steps:
        return None
    verdict = _verdict(trainer)
    said = f" ({verdict})" if verdict else ""
    return f"a callback ended training at step {trainer.global_step} of {trainer.max_steps}{said}"
