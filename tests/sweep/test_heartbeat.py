"""A heart that beats is seen, one that stands still is found by the watcher's own clock, and an outage kills nobody."""

import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from elas_lightning.sweep.heartbeat import ATTRIBUTE, Heartbeat, StaleWatch
from elas_lightning.sweep.storage import open_storage


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _wait_for(storage: optuna.storages.BaseStorage, trial_id: int, count: int) -> None:
    until = time.monotonic() + 60
    while storage.get_trial(trial_id).system_attrs.get(ATTRIBUTE, {"count": 0})["count"] < count:
        assert time.monotonic() < until, "no beat in 60 s"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql"])
def test_it_beats_on_every_storage_and_stops_with_its_block(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"journal://{tmp_path}/j" if kind == "journal" else None
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").create(tmp_path.name)
    storage = open_storage(url, tmp_path)
    trial = optuna.create_study(storage=storage).ask()
    with Heartbeat(storage, trial._trial_id, interval=0.02) as heart:
        _wait_for(storage, trial._trial_id, 3)
    last = storage.get_trial(trial._trial_id).system_attrs[ATTRIBUTE]
    assert set(last) == {"count", "host", "pid"}
    time.sleep(0.1)
    assert storage.get_trial(trial._trial_id).system_attrs[ATTRIBUTE] == last
    assert not heart.lost


class Failing(InMemoryStorage):
    failures = 0

    def set_trial_system_attr(self, *args: object) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError("down")
        super().set_trial_system_attr(*args)  # type: ignore[arg-type]


def test_an_outage_does_not_stop_it() -> None:
    storage = Failing()
    trial = optuna.create_study(storage=storage).ask()
    storage.failures = 5
    with Heartbeat(storage, trial._trial_id, interval=0.01):
        _wait_for(storage, trial._trial_id, 8)


def test_it_knows_when_its_trial_was_taken_away() -> None:
    storage = InMemoryStorage()
    trial = optuna.create_study(storage=storage).ask()
    with Heartbeat(storage, trial._trial_id, interval=0.01) as heart:
        _wait_for(storage, trial._trial_id, 1)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        until = time.monotonic() + 60
        while not heart.lost:
            assert time.monotonic() < until
            time.sleep(0.01)


def _watched() -> tuple[InMemoryStorage, list[int], StaleWatch, Clock]:
    storage, clock = InMemoryStorage(), Clock()
    study = optuna.create_study(storage=storage)
    trials = [study.ask()._trial_id for _ in range(2)]
    return storage, trials, StaleWatch(storage, study._study_id, 40.0, clock), clock


def test_whose_counter_stands_still_for_the_grace_is_stale() -> None:
    storage, (alive, dead), watch, clock = _watched()
    found = []
    for beat in range(12):
        storage.set_trial_system_attr(alive, ATTRIBUTE, {"count": beat})
        found.append([trial._trial_id for trial in watch.stale()])
        clock.now += 5
    assert found == [[]] * 8 + [[dead]] * 4  # seen first at 0 s, for 40 s at the ninth look


def test_another_process_with_the_same_count_is_a_sign_of_life() -> None:
    storage, (trial, _), watch, clock = _watched()
    for beat in range(20):
        storage.set_trial_system_attr(trial, ATTRIBUTE, {"count": 1, "pid": beat // 2})
        assert trial not in [found._trial_id for found in watch.stale()]
        clock.now += 10


def test_a_watch_that_was_away_does_not_take_everybody_for_dead() -> None:
    storage, trials, watch, clock = _watched()
    assert watch.stale() == []
    clock.now += 3600  # asleep, or cut off from the storage as everybody was
    assert watch.stale() == []
    for trial in trials:
        storage.set_trial_system_attr(trial, ATTRIBUTE, {"count": 1})
    clock.now += 10
    assert watch.stale() == []


def test_who_has_ended_is_not_stale() -> None:
    storage, (first, second), watch, clock = _watched()
    for _ in range(3):
        watch.stale()
        clock.now += 10
    storage.set_trial_state_values(first, TrialState.COMPLETE, [1.0])
    for _ in range(3):
        clock.now += 10
        found = watch.stale()
    assert [trial._trial_id for trial in found] == [second]
