"""What a test lets a run's process do instead of training, or while it trains. Processes find these by name."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L

from elas_lightning.errors import UserError, no_room
from elas_lightning.files import not_written
from elas_lightning.processes import hold
from elas_lightning.result import RunResult
from elas_lightning.runner import RunRequest, run
from elas_lightning.sweep.isolated import Make
from elas_lightning.training.interruption import Interrupted


class Started(list[str]):
    """The names of the runs that were started, in order; how each is made can be chosen."""

    def make_with(self, choose: Callable[[RunRequest], Make | None]) -> None:
        """Let ``choose`` name what makes a run, or ``None`` for the real thing."""
        self.choose = choose


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


def _move(request: RunRequest, step: int) -> None:
    request.directory.mkdir(parents=True, exist_ok=True)
    content = {"step": step, "max_steps": 9, "validated_step": -1, "tokens": 9, "seconds": 1.0, "time": 0.0}
    (request.directory / "progress.json").write_text(json.dumps(content))


def _count(request: RunRequest) -> int:
    """How often the run has been begun, this time included."""
    with (request.directory / "begun.txt").open("a+") as file:
        file.write("x")
        file.seek(0)
        return len(file.read())


def _end(request: RunRequest, metrics: dict[str, Any], state: str = "complete", reason: str | None = None) -> RunResult:
    """Leave a result that holds no more than this."""
    name, seed = request.directory.name, int(request.overrides["seed_everything"])
    result = RunResult(name, state, reason, seed, {}, [], {}, metrics, {}, {}, {}, "", "")
    result.write(request.directory)
    return result


def finish(request: RunRequest) -> RunResult:
    """Come to an end at once, with the seed as perplexity."""
    return _end(request, {"val_perplexity": float(request.overrides["seed_everything"]), "seconds": 1.0})


def trade_seconds_for_perplexity(request: RunRequest) -> RunResult:
    """ELAS is twice as fast and no better, a smaller rank is faster and worse; the dense one of rank 2 diverges."""
    dense, small = "dense" in request.directory.name, "rank-2" in request.directory.name
    if dense and small:
        return _end(request, {"seconds": 1.0})
    return _end(request, {"val_perplexity": 8.0 if small else 4.0, "seconds": (4.0 if dense else 2.0) - small})


def die_always(request: RunRequest) -> RunResult:
    _count(request)
    _move(request, 4)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_further_on_each_time(request: RunRequest) -> RunResult:
    times = _count(request)
    _move(request, times)
    if times < 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(request)


def hang_first(request: RunRequest) -> RunResult:
    if _count(request) == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    return finish(request)


def find_the_disk_full(request: RunRequest) -> RunResult:
    """As a checkpoint's writer says it, with the cause behind it."""
    error = no_room("last.ckpt")
    raise not_written(request.directory / "checkpoints/last.ckpt", error) from error


def refuse(request: RunRequest) -> RunResult:
    raise UserError("model.rank is 99")


def refuse_the_first_point(request: RunRequest) -> RunResult:
    if "rank-2" in request.directory.name and "dense" in request.directory.name:
        raise UserError("model.rank is 2")
    return finish(request)


def wait_for_the_end(request: RunRequest) -> RunResult:
    """Run until asked to stop, and say so in a file."""
    _count(request)

    def stop(number: int, frame: Any) -> None:
        (request.directory / "stopped.txt").write_text(str(number))
        raise Interrupted(number)

    signal.signal(signal.SIGTERM, stop)
    _move(request, 1)
    time.sleep(600)
    raise AssertionError


def print_and_finish(request: RunRequest) -> RunResult:
    print("said by the run")
    print("complained by the run", file=sys.stderr)
    (request.directory / "arguments.txt").write_text(
        " ".join([sys.modules["__main__"].__spec__.name, *sys.argv])  # type: ignore[union-attr]
    )
    return finish(request)


def hold_and_finish(request: RunRequest) -> RunResult:
    with hold(request.directory):
        _count(request)
        time.sleep(1)
        return finish(request)


def prune_the_lowest_rank(request: RunRequest) -> RunResult:
    """As the pruner does it: the point's later seeds are not begun."""
    metrics = {"val_perplexity": 2.0, "seconds": 1.0}
    if "rank-2" in request.directory.name:
        return _end(request, metrics, "pruned", "above the median")
    return _end(request, metrics)


def diverge_at_once_if_dense(request: RunRequest) -> RunResult:
    """A run that diverges has no figures of quality, but was quick."""
    if "dense" in request.directory.name:
        return _end(request, {"val_perplexity": None, "seconds": 1.0}, "diverged", "the loss is nan")
    return _end(request, {"val_perplexity": 8.0, "seconds": 9.0})
