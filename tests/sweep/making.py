"""What a test lets a run's process do instead of training, or while it trains. Processes find these by name."""

import os
import signal
import time
from typing import Any

import lightning as L

from elas_lightning.runner import RunRequest, RunResult, run


class _StopTheWorker(L.Callback):
    def __init__(self, worker: int, step: int) -> None:
        self.worker = worker
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(self.worker, signal.SIGINT)
            time.sleep(1)  # until the worker has passed it on


def stop_the_worker(request: RunRequest, worker: int, step: int) -> RunResult:
    """Train, and have the worker stopped at a step."""
    return run(request, [_StopTheWorker(worker, step)])


def run_out_of_memory(request: RunRequest) -> RunResult:
    raise MemoryError("no more")
