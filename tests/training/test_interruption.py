"""A run that is stopped goes on as if it had not been: same batches, same losses, bit for bit."""

import csv
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stopped_runs import StopAfter, curve

from elas_lightning.runner import RunRequest, run
from elas_lightning.training.interruption import Interrupted

pytestmark = pytest.mark.usefixtures("obeys_ctrl_c")


@pytest.mark.parametrize(("number", "accumulate"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_stopped_and_resumed_equals_unbroken(overlay: Path, tmp_path: Path, number: int, accumulate: int) -> None:
    overrides = {"trainer.accumulate_grad_batches": accumulate, "trainer.max_steps": 9}
    whole = run(RunRequest(tmp_path / "whole", [overlay], overrides))
    request = RunRequest(tmp_path / "broken", [overlay], overrides)
    # the seventh batch is the first of two when accumulating: the stop must wait for the second
    with pytest.raises(Interrupted) as stopped:
        run(request, [StopAfter(7, number)])
    assert stopped.value.signal_number == number
    assert not (tmp_path / "broken/result.json").exists()
    resumed = run(request)
    assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]
    assert resumed.metrics["tokens"] == whole.metrics["tokens"]
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


class _Slow(Callback):
    """Takes its time for each micro-batch."""

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(0.3)


@pytest.mark.parametrize("max_time", ["00:00:00:01", {"seconds": 1}])
def test_a_run_whose_time_is_over_is_not_complete(overlay: Path, tmp_path: Path, max_time: Any) -> None:
    overrides = {"trainer.accumulate_grad_batches": 2, "trainer.max_steps": 7}
    run(RunRequest(tmp_path / "whole", [overlay], overrides))
    limited = {**overrides, "trainer.max_time": max_time}
    with pytest.raises(Interrupted) as stopped:
        run(RunRequest(tmp_path / "broken", [overlay], limited), [_Slow()])
    assert stopped.value.signal_number == signal.SIGUSR1
    assert not (tmp_path / "broken/result.json").exists()
    run(RunRequest(tmp_path / "broken", [overlay], overrides))
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


@pytest.mark.parametrize("method", ["mvue", "random"])
def test_a_resumed_run_draws_what_an_unbroken_one_draws(overlay: Path, tmp_path: Path, method: str) -> None:
    overrides = {
        "trainer.max_steps": 9,
        "trainer.accumulate_grad_batches": 2,
        "model.config.sparsity.method": method,
        "model.config.sparsity.gradient": "masked",
        "model.config.sparsity.dense_warmup_steps": 1,
    }
    whole = run(RunRequest(tmp_path / "whole", [overlay], overrides))
    request = RunRequest(tmp_path / "broken", [overlay], overrides)
    with pytest.raises(Interrupted):
        run(request, [StopAfter(7, signal.SIGINT)])
    torch.rand(7)  # the global generator's state is of no account
    resumed = run(request)
    assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    other = run(RunRequest(tmp_path / "other", [overlay], {**overrides, "seed_everything": 1, "data.seed": 0}))
    assert other.metrics["val_loss"] != whole.metrics["val_loss"]


def test_a_resumed_run_keeps_what_was_logged_before(overlay: Path, tmp_path: Path) -> None:
    request = RunRequest(tmp_path / "run", [overlay], {"trainer.logger": None, "trainer.max_steps": 9})
    with pytest.raises(Interrupted):
        run(request, [StopAfter(7, signal.SIGINT)])
    run(request)
    logged = [(tmp_path / f"run/logs/version_{part}/metrics.csv").read_text() for part in (0, 1)]
    steps = [{int(row["step"]) for row in csv.DictReader(text.splitlines())} for text in logged]
    assert max(steps[0]) < 9
    assert max(steps[1]) >= 8


def test_handlers_are_given_back(overlay: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(RunRequest(tmp_path / "run", [overlay], {"trainer.max_steps": 3}))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_does_not_wait_for_the_step(overlay: Path, tmp_path: Path) -> None:
    class Twice(StopAfter):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(RunRequest(tmp_path / "run", [overlay]), [Twice(3, signal.SIGINT)])
