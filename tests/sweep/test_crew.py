"""Several workers on a machine: shares, replacements, one stop for all."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.sweep import crew as crew_module
from elas_lightning.sweep.crew import Crew, devices_of, share
from elas_lightning.sweep.worker import BudgetSpent
from elas_lightning.training.interruption import Interrupted

# Python 3.12 and later: ours has threads that hold nothing which the forked process needs
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
MEMBER = (sys.executable, str(Path(__file__).with_name("pretended_member.py")))


def _work(does: str, folder: Path, workers: int = 2) -> None:
    job = {"does": does, "folder": str(folder)}
    Crew(job, workers, 1, folder / "workers", lambda: None, lambda: None, MEMBER).work()


def _starts(folder: Path) -> list[str]:
    return (folder / "starts.txt").read_text().splitlines()


def test_all_work_and_leave(tmp_path: Path) -> None:
    _work("nothing", tmp_path, workers=3)
    assert len(_starts(tmp_path)) == 3
    assert sorted(path.name for path in (tmp_path / "workers").iterdir()) == ["0.log", "1.log", "2.log"]


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    _work("die once", tmp_path)
    assert len(_starts(tmp_path)) == 3


def test_workers_that_only_die_are_given_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no worker stays alive: each died 3 times in its first seconds; see .*0\.log"):
        _work("die", tmp_path)
    assert len(_starts(tmp_path)) == 6


def test_a_worker_that_lived_for_a_while_is_replaced_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "AT_ONCE_SECONDS", -1.0)
    member = crew_module.Member(0, {}, tmp_path, MEMBER)
    assert all(member.may_be_replaced() for _ in range(10))


def test_who_was_given_up_stays_so_while_the_others_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = crew_module.Member(0, {}, tmp_path, MEMBER)
    member._started = time.monotonic()
    assert [member.may_be_replaced() for _ in range(4)] == [True, True, False, False]
    monkeypatch.setattr(crew_module, "AT_ONCE_SECONDS", -1.0)  # as if it had started long ago
    assert not member.may_be_replaced()


def test_a_refusal_is_the_users_and_ends_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no corpus"):
        _work("refuse", tmp_path)


def test_a_spent_budget_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(BudgetSpent):
        _work("spend", tmp_path)
    assert len(_starts(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_every_worker_once_as_sigterm(tmp_path: Path, number: signal.Signals) -> None:
    def stop_when_they_wait() -> None:
        while len(list(tmp_path.glob("waits-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_they_wait).start()
    with pytest.raises(Interrupted) as stop:
        _work("wait", tmp_path)
    assert stop.value.signal_number == number
    assert [path.read_text() for path in tmp_path.glob("left-*")] == [str(signal.SIGTERM.value)] * 2


def test_workers_leave_when_the_crews_process_is_killed(tmp_path: Path) -> None:
    crew = multiprocessing.get_context("fork").Process(target=_work, args=("wait", tmp_path))
    crew.start()
    _wait_for(lambda: len(list(tmp_path.glob("waits-*"))) == 2)
    crew.kill()
    crew.join()
    _wait_for(lambda: len(list(tmp_path.glob("left-*"))) == 2)


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_cores_are_shared_out_unless_the_user_has_said_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share(0, 3, 1) == {"OMP_NUM_THREADS": "5"}
    assert share(0, 40, 1) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert share(0, 3, 1) == {}


def test_gpus_go_round_and_a_run_on_several_gets_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [share(i, 6, 1)["CUDA_VISIBLE_DEVICES"] for i in range(6)] == ["0", "1", "2", "3", "0", "1"]
    assert [share(i, 3, 2)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0,1", "2,3", "0,1"]
    assert share(0, 1, 9)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    # a scheduler's own choice is what is shared
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert [share(i, 2, 1)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["3", "GPU-5"]


@pytest.mark.parametrize(("asked", "number"), [("auto", 1), (1, 1), (2, 2), ("2", 2), (-1, 1), ([0, 3], 2)])
def test_how_many_gpus_a_run_takes(asked: object, number: int) -> None:
    assert devices_of(asked) == number
