"""A worker and the runs that it starts: what dies, hangs or refuses ends as it should, and others take over."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from typing import Any

import making
import pytest
from optuna.trial import TrialState

from elas_lightning.errors import UserError
from elas_lightning.result import RunResult
from elas_lightning.runner import RunRequest
from elas_lightning.sweep import claims, isolated
from elas_lightning.sweep.isolated import DONE, HELD, IsolatedRun
from elas_lightning.sweep.origin import here
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.storage import open_storage
from elas_lightning.sweep.study import Claim, RunEvent, Study, TrialLost
from elas_lightning.sweep.worker import Budget, Timing, Worker
from elas_lightning.training.interruption import Interrupted

# Python 3.12 and later: ours has threads that hold nothing which the forked process needs
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
FAST = Timing(heartbeat=0.2, grace=1.0, poll=0.1, patience=1.0)


@pytest.fixture
def study(planned: Callable[..., Plan]) -> Study:
    return _open(planned())


def _open(plan: Plan, **more: Any) -> Study:
    plan.folder.mkdir(parents=True, exist_ok=True)
    return Study(plan, open_storage(None, plan.folder), FAST.grace, **more)


def _work(study: Study, make: isolated.Make, **changes: Any) -> None:
    start = partial(IsolatedRun, make=make, method="fork")
    Worker([study], Budget(None), FAST, start=start, **changes).work()


def _results(study: Study) -> dict[str, RunResult]:
    return {event.result.run: event.result for event in study.events()}


def _at_once(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _states(study: Study) -> list[str]:
    return [claims.ended(t) or t.state.name.lower() for t in study.study.get_trials()]


def test_a_worker_fills_every_place_and_results_are_in_the_study(study: Study) -> None:
    _work(study, making.finish)
    assert _states(study) == ["complete"] * 4
    assert study.is_settled()
    assert len(_results(study)) == 8
    assert [t.value for t in study.study.get_trials()] == [0.5] * 4
    # nothing of it is needed here: another machine has it all from the storage
    for path in study.plan.folder.glob("runs/*/result.json"):
        path.unlink()
    again = _open(study.plan)
    assert len(_results(again)) == 8
    _work(again, making.die_always)
    assert _states(again) == ["complete"] * 4


def test_seeds_that_were_run_in_an_earlier_study_are_not_run_again(planned: Callable[..., Plan]) -> None:
    first = _open(planned(seeds=[0]))
    _work(first, making.finish)
    for path in first.plan.folder.glob("runs/*/result.json"):
        path.unlink()
    longer = _open(planned(seeds=[0, 1]))
    begun: list[str] = []

    def start(request: Any) -> IsolatedRun:
        begun.append(request.directory.name)
        return IsolatedRun(request, making.finish, "fork")

    Worker([longer], Budget(None), FAST, start=start).work()
    assert len(begun) == 4
    assert all("seed-1" in name for name in begun)


def test_a_run_that_is_killed_again_and_again_fails_with_the_signals_name(study: Study) -> None:
    _work(study, making.die_always)
    results = _results(study)
    assert {result.reason for result in results.values()} == {
        "it was ended by SIGKILL (often the kernel, out of memory), 3 times without a step in between"
    }
    assert len(results) == 8
    assert {path.stat().st_size for path in study.plan.folder.glob("runs/*/begun.txt")} == {3}
    assert _states(study) == ["failed"] * 4
    assert study.is_settled()
    # the next call tries them again, once
    _work(_open(study.plan), making.finish)
    assert _states(study) == ["failed"] * 4 + ["complete"] * 4


def test_a_run_that_gets_further_each_time_is_not_given_up(planned: Callable[..., Plan]) -> None:
    study = _open(planned(seeds=[0], without=[{"method": "dense"}, {"rank": 0.25}]))
    _work(study, making.die_further_on_each_time)
    assert _states(study) == ["complete"]


def test_a_run_that_hangs_is_killed_and_taken_up_again(planned: Callable[..., Plan]) -> None:
    study = _open(planned(seeds=[0], without=[{"method": "dense"}, {"rank": 0.25}]))
    began = time.monotonic()
    _work(study, making.hang_first)
    assert _states(study) == ["complete"]
    assert time.monotonic() - began < 10


def test_one_impossible_point_is_a_row_and_the_same_complaint_twice_is_the_users(study: Study) -> None:
    _work(study, making.refuse_the_first_point)
    results = _results(study).values()
    assert sorted(result.state for result in results) == ["complete"] * 6 + ["failed"] * 2
    assert {r.reason for r in results if r.state == "failed"} == {"model.rank is 2"}


def test_a_complaint_about_every_point_ends_the_sweep(study: Study) -> None:
    with pytest.raises(UserError, match=r"model\.rank is 99"):
        _work(study, making.refuse)
    assert _states(study) == ["failed"] * 2


def test_a_full_disk_ends_the_sweep_at_the_first_run_and_loses_nothing(planned: Callable[..., Plan]) -> None:
    study = _open(planned(seeds=[0]))
    with pytest.raises(OSError, match=r"No space left on device: .*seed-0"):
        _work(study, making.find_the_disk_full)
    assert _states(study) == ["stopped"]
    assert not list(study.plan.folder.glob("runs/*/result.json"))
    again = _open(study.plan)
    _work(again, making.finish)  # as if there were room now
    assert again.is_settled()
    assert {result.state for result in _results(again).values()} == {"complete"}


def test_a_stopped_worker_stops_its_run_and_gives_the_place_back(study: Study) -> None:
    def stop_when_it_runs() -> None:
        while not list(study.plan.folder.glob("runs/*/progress.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_runs).start()
    with pytest.raises(Interrupted):
        _work(study, making.wait_for_the_end)
    assert [path.read_text() for path in study.plan.folder.glob("runs/*/stopped.txt")] == [str(signal.SIGTERM.value)]
    assert _states(study) == ["stopped"]
    _work(study, making.finish)
    assert _states(study) == ["stopped"] + ["complete"] * 4


def _start_and_be_killed(request: RunRequest) -> None:
    run = IsolatedRun(request, making.wait_for_the_end, "fork")  # its end of the lifeline goes with it
    while not (request.directory / "progress.json").exists():
        assert not run.ended(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_ends_when_its_worker_is_gone(study: Study) -> None:
    request = next(study.plan.runs()).request
    worker = multiprocessing.get_context("fork").Process(target=_start_and_be_killed, args=(request,))
    worker.start()
    worker.join()
    deadline = time.monotonic() + 120
    while not (request.directory / "stopped.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_says_in_a_file_and_is_its_own_command(study: Study) -> None:
    planned = next(study.plan.runs())
    run = IsolatedRun(planned.request, making.print_and_finish, "fork")
    assert run.close() == DONE
    directory = planned.request.directory
    assert (directory / "output.txt").read_text() == "said by the run\ncomplained by the run\n"
    # other ranks are started by it
    module, *arguments = (directory / "arguments.txt").read_text().split()
    assert module == "elas_lightning.__main__"
    assert arguments[:2] == ["elas", "fit"]
    assert f"--trainer.default_root_dir {directory}" in " ".join(arguments)


@pytest.mark.slow
def test_a_server_that_was_killed_is_replaced(study: Study) -> None:
    first, second, *_ = study.plan.runs()
    assert IsolatedRun(first.request, making.finish).close() == DONE
    for _ in range(2):  # the next start often finds it still dying
        run = IsolatedRun(second.request, making.wait_for_the_end)
        while not (second.request.directory / "progress.json").exists():
            assert not run.ended(0.01)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        assert run.ended(10)
        assert run.close() == -signal.SIGKILL  # as if the run itself had been killed: it is taken up again
    assert IsolatedRun(second.request, making.finish).close() == DONE


def test_a_directory_that_another_process_holds_is_waited_for(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = next(study.plan.runs())
    first = IsolatedRun(planned.request, making.hold_and_finish, "fork")
    while not (planned.request.directory / "begun.txt").exists():
        time.sleep(0.01)
    second = IsolatedRun(planned.request, making.finish, "fork")
    assert second.close() == DONE
    assert first.close() == DONE
    monkeypatch.setattr(isolated, "HELD_SECONDS", 0.1)
    third = IsolatedRun(planned.request, making.hold_and_finish, "fork")
    while (planned.request.directory / "begun.txt").stat().st_size < 2:
        time.sleep(0.01)
    assert IsolatedRun(planned.request, making.finish, "fork").close() == HELD
    assert third.close() == DONE


def test_the_trial_of_a_dead_process_of_this_machine_is_put_back_at_once(study: Study) -> None:
    claim = _claim(study)
    study.storage.set_trial_system_attr(claim.id, claims.WORKER, {**here(), "started": "1"})
    study.put_back_lost()
    assert _states(study) == ["lost"]
    assert study.study.trials[0].user_attrs["reason"] == "its worker was lost"
    planned = study.planned(claim.point, 0)
    with pytest.raises(TrialLost):
        study.keep(claim, making.finish(planned.request), 1.0)
    with pytest.raises(TrialLost):
        study.conclude(claim, [making.finish(planned.request)])
    study.release(claim, "stopped")  # says nothing
    assert _states(study) == ["lost"]
    with pytest.raises(TrialLost):
        study.check_ours(claim)
    again = _claim(study)
    assert (again.place, again.point) == (claim.place, claim.point)


def test_a_silent_trial_of_another_machine_is_put_back_after_the_grace_time(study: Study) -> None:
    claim = _claim(study)
    study.storage.set_trial_system_attr(claim.id, claims.WORKER, {**here(), "machine": "elsewhere"})
    study.put_back_lost()
    assert _states(study) == ["running"]
    deadline = time.monotonic() + 120
    while _states(study) == ["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        study.put_back_lost()
    assert _states(study) == ["lost"]


def test_a_worker_whose_trial_was_taken_away_drops_it(study: Study) -> None:
    def take_away() -> None:
        while not list(study.plan.folder.glob("runs/*/progress.json")):
            time.sleep(0.01)
        other = _open(study.plan)
        other._end(other.running()[0]._trial_id, claims.LOST, "its worker was lost")

    threading.Thread(target=take_away).start()
    calls: list[str] = []

    def start(request: Any) -> IsolatedRun:
        calls.append(request.directory.name)
        return IsolatedRun(request, making.finish if len(calls) > 1 else making.wait_for_the_end, "fork")

    Worker([study], Budget(None), FAST, start=start).work()
    assert calls[0] == calls[1]
    assert _states(study) == ["lost"] + ["complete"] * 4


def test_a_point_that_only_loses_workers_fails_with_that_reason(study: Study) -> None:
    for _ in range(claims.LOST_LIMIT):
        claim = _claim(study)
        study.storage.set_trial_system_attr(claim.id, claims.WORKER, {**here(), "started": "1"})
        study.put_back_lost()
    assert _states(study) == ["lost"] * (claims.LOST_LIMIT - 1) + ["failed"]
    assert _claim(study).place != claim.place
    reasons = {r.reason for r in _results(study).values()}
    assert reasons == {"its worker was lost 10 times without a validation in between"}


def test_a_duplicate_ends_and_says_so(study: Study) -> None:
    claim = _claim(study)
    assert study._take(claim.place, claim.point) is None
    assert _states(study) == ["running", "duplicate"]
    assert not study.study.get_trials(states=(TrialState.COMPLETE,))


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_many_workers_at_once_take_each_place_once(kind: str, planned: Callable[..., Plan]) -> None:
    search = {"lr": {"keys": ["model.optimizer.lr"], "choices": [0.01 * i for i in range(1, 13)]}}
    plan = planned(search=search, seeds=[0], plots=[])
    plan.folder.mkdir(parents=True)
    url = f"journal://{(plan.folder / 'journal.log').resolve()}" if kind == "journal" else None
    Study(plan, open_storage(url, plan.folder), FAST.grace)
    taken: list[str] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        study = Study(plan, open_storage(url, plan.folder), FAST.grace)
        barrier.wait()
        while (claim := study.claim(lambda: None)) is not None:
            taken.append(claim.place)

    _at_once(work, 4)
    assert len(taken) == len(set(taken)) == 12


def test_many_workers_at_once_draw_as_often_as_a_search_says(planned: Callable[..., Plan]) -> None:
    search = {"lr": {"keys": ["model.optimizer.lr"], "low": 1e-4, "high": 0.1, "log": True}}
    plan = planned(search=search, seeds=[0], plots=[], sampler="tpe", trials=9)
    plan.folder.mkdir(parents=True)
    Study(plan, open_storage(None, plan.folder), FAST.grace)
    drawn: list[float] = []

    def work() -> None:
        study = Study(plan, open_storage(None, plan.folder), FAST.grace)
        while (claim := study.claim(lambda: None)) is not None:
            drawn.append(claim.point["lr"])

    _at_once(work, 3)
    assert len(drawn) == len(set(drawn)) == 9


def test_events_tell_of_each_run_once(study: Study) -> None:
    _work(study, making.finish)
    # the study has the result, whatever has become of the file
    next(study.plan.runs()).request.directory.joinpath("result.json").write_text("{")
    other = _open(study.plan)
    first: list[RunEvent] = list(other.events())
    assert len(first) == 8
    assert list(other.events()) == []


def _claim(study: Study) -> Claim:
    claim = study.claim(lambda: None)
    assert claim is not None
    return claim
