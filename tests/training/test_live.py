"""What a run says of itself while it goes, and the verdict that ends it."""

import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from elas_lightning.errors import UserError
from elas_lightning.runner import RunRequest, run
from elas_lightning.training import live
from elas_lightning.training.interruption import Interrupted
from elas_lightning.training.live import VERDICT_NAME, read_progress, write_verdict


def test_a_run_leaves_its_last_place(overlay: Path, tmp_path: Path) -> None:
    began = time.time()
    run(RunRequest(tmp_path / "run", (overlay,)))
    progress = read_progress(tmp_path / "run")
    assert progress is not None
    assert (progress["step"], progress["max_steps"], progress["validated_step"]) == (12, 12, 10)
    assert 0 < progress["tokens"] <= 12 * 3 * 16
    assert progress["train_loss"] > 0
    assert began <= progress["time"] <= time.time()


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    write_verdict(tmp_path, 3, None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match=r"verdict\.json cannot be written \(File too large\)"):
            write_verdict(tmp_path, 4, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((tmp_path / VERDICT_NAME).read_text())["step"] == 3


def _judge(directory: Path, ending_at: int) -> threading.Thread:
    """Answers each validation as a worker does."""

    def answer() -> None:
        answered = -1
        deadline = time.monotonic() + 120
        while answered < ending_at and time.monotonic() < deadline:
            progress = read_progress(directory) or {"validated_step": -1}
            if progress["validated_step"] > answered:
                answered = progress["validated_step"]
                write_verdict(directory, answered, "hopeless" if answered >= ending_at else None)
            time.sleep(0.005)

    write_verdict(directory, -1, None)
    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_a_verdict_ends_the_run_at_the_step_it_is_about(overlay: Path, tmp_path: Path) -> None:
    judge = _judge(tmp_path / "run", ending_at=10)
    result = run(RunRequest(tmp_path / "run", (overlay,)))
    judge.join()
    assert (result.state, result.reason) == ("pruned", "hopeless")
    progress = read_progress(tmp_path / "run")
    assert progress is not None
    assert progress["step"] == 10


def test_a_run_without_a_judge_waits_for_nobody_and_one_with_a_silent_judge_not_for_ever(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_verdict(tmp_path / "run", -1, None)
    assert live._VERDICT_SECONDS == 60.0
    monkeypatch.setattr(live, "_VERDICT_SECONDS", 0.5)
    result = run(RunRequest(tmp_path / "run", (overlay,)))
    assert result.state == "complete"
    assert result.metrics["seconds"] < 0.9  # two waits are no training


def test_a_run_that_is_stopped_while_it_waits_leaves(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its worker was killed: nobody is going to answer."""
    monkeypatch.setattr(live, "_STOPPING_SECONDS", 0.1)
    write_verdict(tmp_path / "run", -1, None)

    def stop() -> None:
        deadline = time.monotonic() + 120
        while (read_progress(tmp_path / "run") or {"validated_step": -1})["validated_step"] < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        run(RunRequest(tmp_path / "run", (overlay,)))
    assert time.monotonic() - began < 30
    thread.join()
    progress = read_progress(tmp_path / "run")
    assert progress is not None
    assert progress["step"] == 5


def test_torn_files_say_nothing(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    (tmp_path / "progress.json").write_text('{"step": 3')
    assert read_progress(tmp_path) is None
    (tmp_path / "progress.json").write_text("[]")
    assert read_progress(tmp_path) is None
    write_verdict(tmp_path / "new", 3, "why")
    assert json.loads((tmp_path / "new" / VERDICT_NAME).read_text()) == {"step": 3, "reason": "why"}
