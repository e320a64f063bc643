"""Every storage does the same, mistakes are one line without a password, and an outage is waited for."""

import logging
import multiprocessing
import multiprocessing.context
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from postgres import Postgres
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError

from elas_lightning.errors import UserError
from elas_lightning.sweep.patience import Outage, PatientStorage, is_outage
from elas_lightning.sweep.storage import for_dashboard, open_storage, redact, serve

MINIMIZE = [StudyDirection.MINIMIZE]


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return server.create(tmp_path.name)
    return f"journal://{tmp_path}/study.journal" if request.param == "journal" else None


def test_what_one_process_writes_another_opening_reads(url: str | None, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="a", storage=open_storage(url, tmp_path))
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    trial.set_user_attr("reason", "ü")
    study.tell(trial, float("inf"))
    again = optuna.load_study(study_name="a", storage=open_storage(url, tmp_path))
    assert [(t.state, t.value, t.user_attrs) for t in again.trials] == [
        (TrialState.COMPLETE, float("inf"), {"reason": "ü"})
    ]


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "elas_lightning.runner"])
    return context


def _claim_all(url: str | None, folder: Path) -> list[int]:
    study = optuna.load_study(study_name="a", storage=open_storage(url, folder))
    won = []
    for trial in study.get_trials(states=(TrialState.WAITING,)):
        if study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            won.append(trial.number)
    return won


def test_waiting_trials_are_claimed_once_by_many_processes(url: str | None, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="a", storage=open_storage(url, tmp_path))
    for x in range(20):
        study.enqueue_trial({"x": x})
    with _context().Pool(4) as pool:
        won = pool.starmap(_claim_all, [(url, tmp_path)] * 4)
    assert sorted(number for numbers in won for number in numbers) == list(range(20))


def _open_and_create(url: str | None, folder: Path) -> int:
    study = optuna.create_study(study_name="a", storage=open_storage(url, folder), load_if_exists=True)
    return study.ask().number


def test_many_processes_may_be_the_first(url: str | None, tmp_path: Path) -> None:
    with _context().Pool(4) as pool:
        assert sorted(pool.starmap(_open_and_create, [(url, tmp_path)] * 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("study.db", "give journal:///path"),
        ("redis://host/0", "give journal:///path"),
        ("journal://study.journal", "absolute path after three slashes"),
        ("journal:///no/such/folder/study.journal", "/no/such/folder is no folder"),
        ("sqlite:////no/such/folder/study.db", "cannot be used as a database"),
        ("postgresql://me:secret@localhost:1/x", "no connection"),
        ("postgresql://me:secret@localhost:port/x", "no URL"),
        ("mysql://me:secret@localhost:1/x", "no connection"),
        ("grpc://localhost", "give host and port"),
    ],
)
def test_bad_storages_are_one_line_without_password(url: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        open_storage(url, tmp_path)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_postgresql_says_what_it_refuses(postgres: Postgres, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refuses this user or password") as caught:
        open_storage(postgres.url(password="wrong-secret"), tmp_path)
    assert "wrong-secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"no such database: create it \(createdb NAME\)"):
        open_storage(postgres.url("nowhere"), tmp_path)


def test_a_missing_driver_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(UserError, match=r"pip install 'elas-lightning\[mysql\]'"):
        open_storage("mysql://me@localhost:1/x", tmp_path)


def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n\n")
    with pytest.raises(UserError, match="not an Optuna journal"):
        open_storage(f"journal://{path}", tmp_path)
    assert path.read_text() == "dear diary\n\n"


def test_half_a_line_of_a_killed_writer_is_cut_off_by_the_next(tmp_path: Path) -> None:
    url, path = f"journal://{tmp_path}/j", tmp_path / "j"
    study = optuna.create_study(study_name="a", storage=open_storage(url, tmp_path))
    study.ask()
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x","stu')
    survivor = optuna.load_study(study_name="a", storage=open_storage(url, tmp_path))
    survivor.ask()
    assert [t.number for t in study.trials] == [0, 1]
    assert all(line.endswith("}") for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:se:cr@t@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("elas sweep a --storage mysql://u:p@h/d --workers 2", "elas sweep a --storage mysql://u:***@h/d --workers 2"),
    ],
)
def test_no_password_is_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


class Flaky(InMemoryStorage):
    """Loses answers: a call in ``lost`` is carried out, and then the connection drops; in ``cut``, before it is."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0
        self.cut = 0

    def set_trial_state_values(self, *args: object, **kwargs: object) -> bool:
        if self.cut:
            self.cut -= 1
            raise ConnectionResetError("cut")
        answer = super().set_trial_state_values(*args, **kwargs)  # type: ignore[arg-type]
        if self.lost:
            self.lost -= 1
            raise ConnectionResetError("lost")
        return answer


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (OperationalError("SELECT 1", None, Exception("server closed the connection")), True),
        (PendingRollbackError("Can't reconnect until invalid transaction is rolled back"), True),
        (ConnectionResetError("cut"), True),
        (IntegrityError("INSERT", None, Exception("duplicate key")), False),
        (KeyError("no such trial"), False),
    ],
)
def test_what_is_an_outage(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage
    wrapped = StorageInternalError("during the commit")
    wrapped.__cause__ = error
    assert is_outage(wrapped) is outage


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _patient(storage: BaseStorage) -> tuple[PatientStorage, int, int]:
    clock = Time()
    patient = PatientStorage(storage, "storage x", 60.0, clock, clock.sleep)
    study = patient.create_new_study(MINIMIZE, "a")
    return patient, study, patient.create_new_trial(study)


def test_an_ending_whose_answer_was_lost_is_believed() -> None:
    flaky = Flaky()
    patient, _, trial = _patient(flaky)
    flaky.lost = 1
    assert patient.set_trial_state_values(trial, TrialState.COMPLETE, [1.5])
    assert patient.get_trial(trial).values == [1.5]


def test_an_ending_that_another_process_was_first_with_is_not_believed() -> None:
    flaky = Flaky()
    patient, _, trial = _patient(flaky)
    flaky.set_trial_state_values(trial, TrialState.FAIL)
    flaky.cut = 1
    with pytest.raises(UpdateFinishedTrialError):
        patient.set_trial_state_values(trial, TrialState.COMPLETE, [1.5])


def test_a_claim_whose_answer_was_lost_is_nobodys() -> None:
    flaky = Flaky()
    patient, study, _ = _patient(flaky)
    waiting = patient.create_new_trial(study, optuna.trial.create_trial(state=TrialState.WAITING))
    flaky.lost = 1
    assert not patient.set_trial_state_values(waiting, TrialState.RUNNING)
    assert patient.get_trial(waiting).state == TrialState.RUNNING  # for the watch to find


def test_patience_has_an_end_and_is_told_twice_at_most(caplog: pytest.LogCaptureFixture) -> None:
    flaky = Flaky()
    patient, _, trial = _patient(flaky)
    with caplog.at_level(logging.WARNING):
        flaky.cut = 5
        assert patient.set_trial_state_values(trial, TrialState.RUNNING) is False
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("patience")]
    assert len(lines) == 2
    assert lines[0] == "storage x does not answer (cut): waiting up to 60 s"
    assert lines[1].startswith("storage x is back after")
    flaky.cut = 1000
    with pytest.raises(UserError, match="nothing is lost; the same command goes on when it is back"):
        patient.set_trial_state_values(trial, TrialState.FAIL)


def test_a_file_for_which_there_is_no_room_is_not_waited_for(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    study = storage.create_new_study(MINIMIZE, "a")
    engine = storage.impatient._backend.engine  # type: ignore[attr-defined]
    # SQLite says the same where the file may not grow as where the disk is full
    event.listen(engine, "checkout", lambda connection, *_: connection.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(OSError, match=r"No space left on device: .*study\.db"):
        storage.set_study_user_attr(study, "long", "x" * 100_000)


def test_an_answer_that_was_under_way_when_an_outage_began_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    clock = Time()
    outage = Outage("storage x", 60.0, clock)
    asked = clock()
    clock.sleep(1)
    with caplog.at_level(logging.WARNING):
        outage.goes_on(ConnectionResetError("cut"))
        clock.sleep(1)
        outage.is_over(asked)
        assert len(caplog.records) == 1
        asked = clock()
        outage.is_over(asked)
    assert [r.getMessage() for r in caplog.records][1:] == ["storage x is back after 1 s"]


def test_what_was_asked_wrongly_is_not_asked_again() -> None:
    patient, _, trial = _patient(Flaky())
    with pytest.raises(KeyError):
        patient.get_trial(trial + 99)


def test_a_restart_of_the_server_during_calls_of_several_threads_loses_nothing(
    postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(postgres.create(tmp_path.name), tmp_path)
    study = optuna.create_study(study_name="a", storage=storage)
    under_way, stopped = threading.Event(), threading.Event()

    def work(worker: int) -> list[int]:
        done = []
        for index in range(40):
            if index == 20:  # those before may meet the server's end, those behind surely meet none
                stopped.wait()
            trial = study.ask()
            trial.set_user_attr("by", [worker, index])
            study.tell(trial, float(index))
            done.append(trial.number)
            if index == 3:
                under_way.set()
        return done

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work, worker) for worker in range(3)]
        under_way.wait()
        postgres.stop()
        stopped.set()
        time.sleep(1.0)
        postgres.start()
        told = [number for future in futures for number in future.result()]
    trials = study.get_trials()
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    assert sorted(t.number for t in complete) == sorted(told)
    assert sorted(t.user_attrs["by"] for t in complete) == [[w, i] for w in range(3) for i in range(40)]
    assert len({t.number for t in trials}) == len(trials)
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("patience")]
    # A server that goes down cuts its connections one by one: one of them may answer once more in between.
    assert 1 <= len(lines) // 2 <= 3
    assert ["does not answer" in line for line in lines] == [True, False] * (len(lines) // 2)
    assert ["is back after" in line for line in lines] == [False, True] * (len(lines) // 2)


def test_the_proxy_serves_a_database(tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="needs the extra `grpc`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = _context().Process(target=serve, args=(f"sqlite:///{tmp_path / 'study.db'}", port))
    server.start()
    try:
        end = time.monotonic() + 60
        with socket.socket() as server_is_up:  # a slow machine takes longer to import than a client waits
            while server_is_up.connect_ex(("127.0.0.1", port)) and time.monotonic() < end:
                time.sleep(0.1)
        study = optuna.create_study(study_name="a", storage=open_storage(f"grpc://127.0.0.1:{port}", tmp_path))
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        study.tell(trial, 2.0)
    finally:
        server.terminate()
        server.join()
    assert optuna.load_study(study_name="a", storage=open_storage(None, tmp_path)).best_value == 2.0


def test_the_proxy_takes_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the proxy serves a database"):
        serve("journal:///x/y", 13000)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///runs/a/study.db", "sqlite:///runs/a/study.db"),
        ("journal:///shared/a%20b.journal", "/shared/a b.journal"),
        ("postgresql://me:secret@host/elas", "postgresql+psycopg://me:***@host/elas"),
        ("mysql://me@host/elas", "mysql+pymysql://me@host/elas"),
        ("grpc://host:13000", None),
    ],
)
def test_the_dashboard_is_named_a_storage_that_it_can_open(url: str, shown: str | None) -> None:
    assert for_dashboard(url) == shown
