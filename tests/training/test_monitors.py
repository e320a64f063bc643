"""What callbacks monitor must be there, and the result says who ended a run before its last step."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping

from elas_lightning.cli import main
from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.errors import UserError
from elas_lightning.runner import execute
from elas_lightning.training.checkpoints import read
from elas_lightning.training.interruption import Interrupted
from elas_lightning.training.metrics import LOGGED


class _Notes(Callback):
    def __init__(self) -> None:
        self.metrics: set[str] = set()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metrics = set(trainer.callback_metrics) | self.metrics


class _LogsItsOwn(Callback):
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("mine", 1.0)


def _cli(overlay: Path, directory: Path, *callbacks: Callback, **checkpoint: Any) -> ElasCLI:
    own = {"trainer.default_root_dir": str(directory), **{f"checkpoint.{key}": v for key, v in checkpoint.items()}}
    return ElasCLI(command_line([overlay], own), run=False, callbacks=callbacks)


def test_what_can_be_monitored_is_what_is_logged(overlay: Path, tmp_path: Path) -> None:
    notes = _Notes()
    assert execute(_cli(overlay, tmp_path / "run", notes)).reason is None
    assert notes.metrics == set(LOGGED)


def test_a_run_that_is_stopped_early_says_by_whom(
    overlay: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = [{"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "stopping_threshold": 100.0}}]
    arguments = [f"--config={overlay}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main(["fit", *arguments, f"--trainer.callbacks={json.dumps(stopping)}"]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["state"] == "complete"
    assert "ended training at step 5 of 12 (EarlyStopping: Stopping threshold reached" in result["reason"]
    assert result["metrics"]["val_loss"] < 100
    assert f"complete: {result['reason']}" in capsys.readouterr().err


class _Told(Callback):
    """Is told to stop in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory", "ignore:The dirpath has changed", "ignore:Be aware that when"
)
def test_a_verdict_outlives_a_stop(overlay: Path, tmp_path: Path) -> None:
    threshold = partial(EarlyStopping, "val_loss", stopping_threshold=100.0)
    stopped = _cli(overlay, tmp_path / "run", threshold(), _Told(5))  # whose validation ends the run
    with pytest.raises(Interrupted):
        execute(stopped)
    again = _cli(overlay, tmp_path / "run", threshold())
    assert "ended training at step 5 of 12" in str(execute(again, ckpt_path=stopped.checkpoint_path).reason)
    # without the callback it is not its verdict that counts
    other = _cli(overlay, tmp_path / "other")
    assert execute(other, ckpt_path=stopped.checkpoint_path).reason is None


def test_a_metric_of_somebody_elses_may_be_monitored(overlay: Path, tmp_path: Path) -> None:
    watching = EarlyStopping("mine", patience=1)
    assert "step 10 of 12" in str(execute(_cli(overlay, tmp_path / "run", _LogsItsOwn(), watching)).reason)
    cli = _cli(overlay, tmp_path / "other", _LogsItsOwn(), EarlyStopping("mien"))
    with pytest.raises(UserError, match="EarlyStopping monitors 'mien', which nothing logs: choose one of mine, "):
        execute(cli)


def test_a_stop_leaves_the_best_checkpoint_alone(overlay: Path, tmp_path: Path) -> None:
    cli = _cli(overlay, tmp_path / "run", _Told(7), monitor="val_loss", every_n_train_steps=5)
    with pytest.raises(Interrupted):
        execute(cli)
    steps = {path.name: read(path)["global_step"] for path in (tmp_path / "run/checkpoints").iterdir()}
    assert steps == {"best.ckpt": 5, "last.ckpt": 7}


def test_a_run_that_is_stopped_between_micro_batches_keeps_its_model(overlay: Path, tmp_path: Path) -> None:
    own = {"trainer.accumulate_grad_batches": 2, "trainer.default_root_dir": str(tmp_path / "run")}
    threshold = EarlyStopping("val_loss", stopping_threshold=100.0)
    cli = ElasCLI(command_line([overlay], own), run=False, callbacks=[threshold])
    assert "at step 2 of 12" in str(execute(cli).reason)  # behind five micro-batches
    assert read(cli.checkpoint_path)["global_step"] == 2
