"""``elas fit`` typed again: which run it goes on with, what it refuses, and its exit codes."""

import errno
import json
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from stopped_runs import curve

from elas_lightning import runner
from elas_lightning.cli import main
from elas_lightning.continuation import Beginning, begin
from elas_lightning.processes import hold
from elas_lightning.training.checkpoints import read, verify

Fit = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("obeys_ctrl_c")


@pytest.fixture
def fit(overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fit:
    """Types ``elas fit`` in a folder of its own: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["fit", "--config", str(overlay), "--checkpoint.every_n_train_steps=3", *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def _callback(name: str, **arguments: Any) -> str:
    return f"--trainer.callbacks={json.dumps([{'class_path': f'watching.{name}', 'init_args': arguments}])}"


def _stop(fit: Fit, *arguments: str, place: str = "step", step: int = 6) -> None:
    """Leave an unfinished run whose newest checkpoint is of ``step`` + 1."""
    code, _, error = fit(_callback("SignalAt", number=int(signal.SIGTERM), place=place, step=step), *arguments)
    assert code == 128 + signal.SIGTERM
    assert "the same command goes on" in error


ONCE = _callback("SignalAt", number=int(signal.SIGTERM), place="step", step=6)


def test_the_same_command_goes_on_and_a_finished_run_is_left_alone(fit: Fit) -> None:
    where = "--trainer.default_root_dir=mine"
    _stop(fit, where)
    code, out, _ = fit(ONCE, where, "--ckpt_path=last")
    assert code == 0
    assert "going on with mine from step 7 (mine/checkpoints/last.ckpt); --ckpt_path new begins a new run" in out
    whole, _, _ = fit("--trainer.default_root_dir=whole")
    assert whole == 0
    assert curve(Path("mine")) == curve(Path("whole"))
    before = {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*") if path.name != ".lock"}
    for wish in ((), ("--ckpt_path=last",)):
        code, out, _ = fit(ONCE, where, *wish)
        assert (code, out) == (0, "mine is finished\nresults: mine\n")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    code, _, error = fit(ONCE, where, "--ckpt_path=new")
    assert (code, error.count("\n")) == (2, 1)
    assert "mine holds a run already" in error


def test_without_a_directory_the_newest_unfinished_run_of_the_configuration_goes_on(fit: Fit) -> None:
    assert fit("--model.config.ffn_rank=8", "--trainer.max_steps=3")[0] == 0
    _stop(fit)
    _stop(fit, "--ckpt_path=new", step=3)
    with hold(Path("runs/fit/002")):
        assert "going on with runs/fit/001 from step 7" in fit(ONCE)[1]
        assert fit(ONCE, "--ckpt_path=last")[0] == 2
    other = _callback("SignalAt", number=int(signal.SIGTERM), place="step", step=3)
    assert "going on with runs/fit/002 from step 4" in fit(other, "--data.num_workers=2", "--ckpt_path=last")[1]
    code, _, error = fit(ONCE, "--ckpt_path=last")
    assert code == 2
    assert "--ckpt_path last: below runs/fit/ there is no unfinished run of this configuration" in error
    assert sorted(path.name for path in Path("runs/fit").iterdir()) == ["000", "001", "002"]


def test_another_configuration_is_refused_with_what_differs(fit: Fit) -> None:
    _stop(fit, "--trainer.default_root_dir=mine")
    code, _, error = fit(ONCE, "--trainer.default_root_dir=mine", "--trainer.max_steps=20", "--model.optimizer.lr=0.5")
    assert (code, error.count("\n")) == (2, 1)
    assert "trainer.max_steps is 20 but the run has 12" in error
    assert "model.optimizer.lr is 0.5 but the run has 0.01" in error
    code, _, error = fit("--trainer.max_steps=20", "--ckpt_path=mine/checkpoints/last.ckpt")
    assert code == 2
    assert "trainer.max_steps is 20 but the checkpoint has 12" in error
    with hold(Path("mine")):
        code, _, error = fit(ONCE, "--trainer.default_root_dir=mine")
    assert (code, "another process is at work in mine" in error) == (2, True)


def test_the_second_of_two_that_were_typed_at_once_takes_nothing_from_the_first(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(*arguments: Any) -> Beginning:
        with hold(Path("mine")):  # the first one, since the second has looked what was there
            Path("mine/curve.csv").write_text("the first one's")
            return begin(*arguments)

    monkeypatch.setattr(runner, "begin", second)
    code, _, error = fit("--trainer.default_root_dir=mine")
    assert (code, "another process is at work in mine" in error) == (2, True)
    assert Path("mine/curve.csv").read_text() == "the first one's"


def test_a_validation_waits_for_the_run_in_its_directory(fit: Fit, overlay: Path) -> None:
    _stop(fit, "--trainer.default_root_dir=mine")
    arguments = ["validate", f"--config={overlay}", "--trainer.default_root_dir=mine"]
    with hold(Path("mine")):
        assert main([*arguments, "--ckpt_path=mine/checkpoints/last.ckpt"]) == 2
    assert main([*arguments, "--ckpt_path=mine/checkpoints/last.ckpt"]) == 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"WORLD_SIZE": "2", "RANK": "0"}, "several processes .* give --trainer.default_root_dir")],
)
def test_processes_that_were_started_together_must_agree(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, error = fit()
    assert code == 2
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("number", "place", "step", "saved"),
    [(signal.SIGUSR1, "validation", 5, 5), (signal.SIGINT, "setup", 0, None), (signal.SIGTERM, "validation", 10, 10)],
)
def test_a_signal_within_a_validation_or_before_training(
    fit: Fit, number: int, place: str, step: int, saved: int | None
) -> None:
    where = "--trainer.default_root_dir=mine"
    at = _callback("SignalAt", number=int(number), place=place, step=step)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert fit(at, where, "--checkpoint.every_n_train_steps=100")[0] == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    last = Path("mine/checkpoints/last.ckpt")
    assert (read(last)["global_step"] if last.exists() else None) == saved
    config = yaml.safe_load(Path("mine/config.yaml").read_text())
    config["trainer"]["callbacks"] = None
    Path("mine/config.yaml").write_text(yaml.safe_dump(config))
    assert fit(where)[0] == 0
    assert fit("--trainer.default_root_dir=whole")[0] == 0
    assert curve(Path("mine")) == curve(Path("whole"))


@pytest.mark.parametrize("behind", [False, True])
def test_a_poisoned_run_diverges_and_saves_no_poison(fit: Fit, behind: bool) -> None:
    poison = _callback("Poison", step=6, behind=behind)
    code, _, error = fit(poison, "--trainer.default_root_dir=mine")
    assert code == 3
    assert error.startswith("diverged: ")
    result = json.loads(Path("mine/result.json").read_text())
    assert result["state"] == "diverged"
    for path in Path("mine/checkpoints").iterdir():
        verify(path)
        assert all(bool(t.isfinite().all()) for t in read(path)["state_dict"].values())
    assert read(Path("mine/checkpoints/last.ckpt"))["global_step"] == (6 if not behind else 3)
    assert fit(poison, "--trainer.default_root_dir=mine")[0] == 3  # it is finished


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(fit: Fit) -> None:
    where = "--trainer.default_root_dir=mine"
    _stop(fit, where)
    last = Path("mine/checkpoints/last.ckpt")
    before = last.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        code, _, error = fit(ONCE, where)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, error.count("\n")) == (2, 1)
    assert "last.ckpt cannot be written (File too large): what was saved before is untouched" in error
    assert last.read_bytes() == before
    assert fit(ONCE, where)[0] == 0


def test_a_disk_that_is_full_in_the_midst_of_the_curve_is_said_in_one_line(fit: Fit) -> None:
    where = "--trainer.default_root_dir=mine"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        code, _, error = fit(where, _callback("FullDisk", step=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, error.count("\n")) == (2, 1)
    assert "mine/curve.csv cannot be written (File too large): what was saved before is untouched" in error
    assert read(Path("mine/checkpoints/last.ckpt"))["global_step"] == 3


def test_a_disk_that_is_full_where_a_logger_writes_is_said_in_one_line(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(CSVLogger, "save", Mock(side_effect=no_space))
    code, _, error = fit("--trainer.default_root_dir=mine", "--trainer.logger=true")
    assert (code, error.count("\n")) == (2, 1)
    assert "mine cannot be written (No space left on device): what was saved before is untouched" in error


def test_a_torn_newest_checkpoint_costs_its_steps_and_not_the_run(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    where = "--trainer.default_root_dir=mine"
    _stop(fit, where)
    last = Path("mine/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:-300])
    code, _, error = fit(ONCE, where, f"--ckpt_path={last}")
    assert (code, "last.ckpt cannot be read" in error) == (2, True)
    code, out, _ = fit(ONCE, where)
    assert code in (0, 128 + signal.SIGTERM)
    assert "going on with mine from step 6 (mine/checkpoints/previous.ckpt)" in out
    assert "going on from the one before" in caplog.text


FOREIGN = {"state_dict": {"w": torch.zeros(1)}, "global_step": 3, "pytorch-lightning_version": "2.6.6"}


@pytest.mark.parametrize(
    ("content", "message"),
    [([1], "other.ckpt is not the checkpoint of a run"), (FOREIGN, "the checkpoint is of another model")],
)
def test_a_foreign_checkpoint_is_refused(fit: Fit, content: Any, message: str) -> None:
    torch.save(content, "other.ckpt")
    code, _, error = fit("--ckpt_path=other.ckpt")
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_weights_alone_cannot_be_trained_on(fit: Fit) -> None:
    assert fit("--trainer.default_root_dir=mine", "--checkpoint.save_weights_only=true")[0] == 0
    code, _, error = fit("--ckpt_path=mine/checkpoints/last.ckpt")
    assert (code, error.count("\n")) == (2, 1)
    assert "weights alone" in error


def test_a_directory_that_cannot_be_made(fit: Fit) -> None:
    Path("file").write_text("")
    code, _, error = fit("--trainer.default_root_dir=file/run")
    assert (code, error.count("\n")) == (2, 1)
    assert "file/run cannot be written to (Not a directory)" in error
    assert not os.path.exists("runs")


def test_a_slurm_job_has_a_directory_of_its_own_and_is_not_requeued_by_lightning(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NTASKS", "JOB_ID", "JOB_NAME", "PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "train"}.get(name, "0"))
    warned = _callback("SignalAt", number=int(signal.SIGUSR1), place="step", step=6)
    assert fit(warned)[0] == 128 + signal.SIGUSR1
    assert not list(Path("runs").rglob("hpc_ckpt*"))
    code, out, _ = fit(warned)
    assert (code, "going on with runs/fit/slurm-77 from step 7" in out) == (0, True)
