"""What ``elas sweep status`` says, from the study and the runs' own files."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import making
import pytest
from optuna import create_study

from elas_lightning.cli import main
from elas_lightning.sweep import claims
from elas_lightning.sweep.isolated import IsolatedRun
from elas_lightning.sweep.origin import here
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.storage import open_storage
from elas_lightning.sweep.study import Study
from elas_lightning.sweep.worker import Budget, Timing, Worker

# Python 3.12 and later: ours has threads that hold nothing which the forked process needs
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def study(planned: Callable[..., Plan]) -> Study:
    plan = planned()
    plan.folder.mkdir(parents=True)
    return Study(plan, open_storage(None, plan.folder), grace=60)


def _status(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["sweep", "status", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_study_that_was_only_begun(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _status(capsys, "mine")
    assert lines[0].startswith("mine-")
    assert lines[1:3] == ["  points: 4 not begun", "  runs: none ended of 8"]
    assert lines[-1] == "  dashboard: optuna-dashboard sqlite:///runs/mine/study.db"


def test_what_is_done_running_and_failed(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    start = partial(IsolatedRun, make=making.refuse_the_first_point, method="fork")
    Worker([study], Budget(None), Timing(), start=start).work()
    lines = _status(capsys)
    assert lines[1:3] == ["  points: 1 failed, 3 complete", "  runs: 6 complete, 2 failed of 8"]
    assert "  failed: trial 0 (method dense, rank 0.125 x model.config.hidden_size): model.rank is 2" in lines
    again = Study(study.plan, open_storage(None, study.plan.folder), grace=60)
    claim = again.claim(lambda: None)
    assert claim is not None
    planned = study.planned(claim.point, 1)
    study.storage.set_trial_system_attr(claim.id, claims.RUN, planned.request.directory.name)
    progress = {"step": 50, "max_steps": 200, "validated_step": -1, "tokens": 9000, "seconds": 10.0}
    path = planned.request.directory / "progress.json"
    path.write_text(json.dumps({**progress, "time": time.time()}))
    lines = _status(capsys)
    assert lines[1] == "  points: 1 running, 3 complete"
    running = next(line for line in lines if line.startswith("  running: "))
    assert "trial 4 (method dense, rank 0.125 x model.config.hidden_size) on " in running
    assert f" on {here()['host']}, process {here()['pid']}, step 50/200" in running
    assert running.endswith("900 tokens/s, 30 s of training left")
    assert "  best: val_perplexity 0.5 (trial 1: method ELAS, rank 0.125 x model.config.hidden_size)" in lines
    path.write_text(json.dumps({**progress, "time": time.time() - 1000}))
    assert "no news for 17 min" in "\n".join(_status(capsys))
    study.storage.set_trial_system_attr(claim.id, claims.WORKER, {**here(), "started": "1"})
    assert "which is gone; the next worker takes it up" in "\n".join(_status(capsys))


def test_of_several_objectives_all_points_are_told_that_no_other_is_better_than(
    planned: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(objective=["val_perplexity", "seconds"])
    plan.folder.mkdir(parents=True)
    study = Study(plan, open_storage(None, plan.folder), grace=60)
    start = partial(IsolatedRun, make=making.trade_seconds_for_perplexity, method="fork")
    Worker([study], Budget(None), Timing(), start=start).work()
    best = [line for line in _status(capsys, "mine") if line.startswith("  best: ")]
    assert [line.partition(" (trial ")[0] for line in best] == [
        "  best: val_perplexity 4, seconds 2",
        "  best: val_perplexity 8, seconds 1",
    ]
    assert all("method ELAS" in line for line in best)


def test_looking_changes_nothing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    claim = study.claim(lambda: None)
    assert claim is not None
    study.storage.set_trial_system_attr(claim.id, claims.WORKER, {**here(), "started": "1"})
    before = [(t.state, t.user_attrs, t.system_attrs) for t in study.study.get_trials()]
    files = sorted(Path("runs").rglob("*"))
    _status(capsys, "mine")
    assert [(t.state, t.user_attrs, t.system_attrs) for t in study.study.get_trials()] == before
    assert sorted(Path("runs").rglob("*")) == files


def test_a_study_elsewhere_is_found_by_its_sweeps_name(
    planned: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    plan = planned()
    Study(plan, open_storage(url, plan.folder), grace=60)
    assert _status(capsys, "mine", "--storage", url)[0].startswith("mine-")
    assert _status(capsys, "--storage", url)[0].startswith("mine-")
    create_study(study_name="mine-too-0123abcd", storage=open_storage(url, plan.folder))
    assert not any("too" in line for line in _status(capsys, "mine", "--storage", url))
    assert main(["sweep", "status", "grid", "--storage", url]) == 2
    assert "there is no study of grid in" in capsys.readouterr().err


def test_a_folder_that_was_renamed_tells_of_its_study(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.plan.folder.rename("runs/another")
    assert _status(capsys, "another")[0].startswith("mine-")


def test_nothing_to_look_at_is_said_in_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status"]) == 2
    assert capsys.readouterr().err == "error: there is no study below runs/: `elas sweep NAME` begins one\n"
    assert main(["sweep", "status", "grid"]) == 2
    assert "there is no study in runs/grid/" in capsys.readouterr().err
    assert main(["sweep", "grid", "grid"]) == 2
    assert "sweep takes one name, not grid and grid" in capsys.readouterr().err
