"""A run that is killed again and again is the run that was never killed: losses, batches, random numbers."""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fitting import Forked, Fresh, Started, elas, wait_until
from stopped_runs import curve

from elas_lightning.cli import main

STEPS = 60
# micro-batches between validations; a window of the curve that checkpoints cut through
RUN = [
    f"--trainer.max_steps={STEPS}",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=14",
    "--trainer.log_every_n_steps=3",
    "--checkpoint.every_n_train_steps=2",
    "--data.num_workers=2",
]


def _arguments(overlay: Path, directory: Path, pause: float = 0.0) -> list[str]:
    noting = {"path": str(directory / "seen"), "pause": pause}
    seen = [{"class_path": "watching.Seen", "init_args": noting}]
    where = [f"--trainer.default_root_dir={directory}", f"--trainer.callbacks={json.dumps(seen)}"]
    return ["fit", "--config", str(overlay), *RUN, *where]


def _same(directory: Path, whole: Path) -> None:
    assert curve(directory) == curve(whole)
    assert (directory / "seen.0").read_text() == (whole / "seen.0").read_text()
    mine, theirs = (json.loads((d / "result.json").read_text())["metrics"] for d in (directory, whole))
    for name in ("val_loss", "train_loss", "tokens", "loss_spikes"):
        assert mine[name] == theirs[name]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def whole(overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unbroken run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    directory = tmp_path / "whole"
    assert main(_arguments(overlay, directory)) == 0
    assert _lines(directory / "seen.0") == 2 * STEPS
    return directory


def _killed(start: Any, arguments: Sequence[str], directory: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run to the end with kills on the way; figures of how it went."""
    draw, seen, at, started = random.Random(seed), directory / "seen.0", [], 0
    while True:
        process: Started = start(arguments)
        started += 1
        if len(at) == kills:
            assert process.end() == 0
            return {"starts": started, "at": at}
        if draw.random() < 0.15:
            time.sleep(draw.uniform(0, 3))  # wherever it is by then: imports, the corpus, the first steps
        else:
            # all over the run, with batches left for the kills to come; each kill costs some that are done again
            left = 2 * STEPS - _lines(seen)
            most = min(2 * left // (kills - len(at)) + 4, left - 12)
            batches = draw.randint(1, most) if most > 1 else 0
            changes = seen.stat().st_mtime_ns if seen.exists() else 0
            moved = wait_until(lambda: seen.exists() and seen.stat().st_mtime_ns > changes, process)  # noqa: B023
            begun = _lines(seen)
            moved = moved and wait_until(lambda: _lines(seen) >= begun + batches, process)  # noqa: B023
            time.sleep(draw.uniform(0, 0.04) if moved else 0)
        os.kill(process.pid, signal.SIGKILL)
        code = process.end()
        if code == 0:  # it was faster
            return {"starts": started, "at": at}
        assert code == -signal.SIGKILL
        at.append(_lines(seen))


def test_killed_at_random_times(overlay: Path, whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills = request.config.getoption("--kills") or 4
    arguments = _arguments(overlay, tmp_path / "killed", pause=0.005)
    went = _killed(lambda a: Forked(elas, a, tmp_path), arguments, tmp_path / "killed", kills, seed=0)
    print(went)
    assert went["at"]
    _same(tmp_path / "killed", whole)


@pytest.mark.slow
def test_the_command_killed_at_random_times(
    overlay: Path, whole: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kills = request.config.getoption("--kills") or 20
    arguments = _arguments(overlay, tmp_path / "killed", pause=0.02)
    went = _killed(lambda a: Fresh(a, tmp_path), arguments, tmp_path / "killed", kills, seed=1)
    print(went)
    assert len(went["at"]) == kills
    _same(tmp_path / "killed", whole)


def test_another_number_of_workers_and_a_pause(overlay: Path, whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "changed"
    arguments = _arguments(overlay, directory, pause=0.005)
    for workers in (0, 2, 1):
        process = Forked(elas, [*arguments, f"--data.num_workers={workers}"], tmp_path)
        begun = _lines(directory / "seen.0")
        assert wait_until(lambda: _lines(directory / "seen.0") >= begun + 20, process)  # noqa: B023
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGCONT)
        os.kill(process.pid, signal.SIGKILL)
        assert process.end() == -signal.SIGKILL
    assert Forked(elas, arguments, tmp_path).end() == 0
    _same(directory, whole)
