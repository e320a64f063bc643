"""A storage that waits for its database: connections drop and servers restart, and a study must not end with them.

Every call is tried again, later and later, until it is answered or the patience is over. A call whose answer was lost
may have been carried out, so what a second attempt may do is decided call by call:

- reads, attributes, parameters, intermediate values and deletions come to the same however often they are made;
- ``create_new_trial`` may leave a trial that nobody knows of. If it waits, it repeats another and is passed over; if it
  runs, its heart never beats and :class:`~elas_lightning.sweep.heartbeat.StaleWatch` finds it;
- a claim (``WAITING`` to ``RUNNING``) that is answered "no" at the second attempt may be our own first one. It is not
  believed: nobody runs that trial, and it is found stale as well. Believed, it might be run by two;
- an ending is believed where the trial has just that state and those values already.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import getLogger
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy import exc

from elas_lightning.errors import UserError, is_full_disk, no_room

_log = getLogger(__name__)
T = TypeVar("T")
PATIENCE_SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 20.0
# Codes of gRPC. UNKNOWN is an exception in the server: its own patience is over, then.
GRPC_OUTAGES = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN"}


def is_outage(error: BaseException) -> bool:
    """Whether an error speaks of the way to the data (connection, server, disk) rather than of what was asked."""
    if isinstance(error, StorageInternalError):
        return error.__cause__ is not None and is_outage(error.__cause__)
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated or isinstance(error, exc.OperationalError | exc.InterfaceError)
    if type(error).__module__.startswith("grpc"):
        code = getattr(error, "code", None)
        return callable(code) and getattr(code(), "name", "") in GRPC_OUTAGES
    # Optuna asks once more in the session in which the connection was lost: PendingRollbackError.
    # sqlalchemy's own TimeoutError: all connections of the pool are in use. A journal's lock that was taken away from
    # a process that had been asleep is a RuntimeError of Optuna's.
    lost_lock = isinstance(error, RuntimeError) and "did not possess lock" in str(error)
    return lost_lock or isinstance(error, exc.PendingRollbackError | exc.TimeoutError | OSError)


class Outage:
    """The time in which a storage does not answer, seen by all threads as one.

    Args:
        name: The storage, as messages call it.
        patience: Seconds until it is given up.
        clock: Seconds.
    """

    def __init__(self, name: str, patience: float, clock: Callable[[], float]) -> None:
        self._name = name
        self._patience = patience
        self._clock = clock
        self._began: float | None = None
        self._lock = threading.Lock()

    def goes_on(self, error: BaseException) -> None:
        """A call has failed.

        Raises:
            UserError: The patience is over.
        """
        reason = reason_of(error)
        with self._lock:
            if self._began is None:
                self._began = self._clock()
                _log.warning("%s does not answer (%s): waiting up to %.0f s", self._name, reason, self._patience)
            waited = self._clock() - self._began
            if waited >= self._patience:
                self._began = None  # who asks again begins to wait again
                raise UserError(
                    f"{self._name} has not answered for {waited:.0f} s ({reason}): nothing is lost; the same command "
                    "goes on when it is back"
                ) from error

    def is_over(self, asked: float) -> None:
        """A call has been answered that was made at ``asked``; it may have been under way when the outage began."""
        if self._began is None:
            return
        with self._lock:
            if self._began is not None and asked > self._began:
                _log.warning("%s is back after %.0f s", self._name, self._clock() - self._began)
                self._began = None


def reason_of(error: BaseException) -> str:
    """The innermost message, on one line and not too long: libraries add the whole statement."""
    details = getattr(error, "details", None)  # gRPC
    inner = getattr(error, "orig", None) or error.__cause__
    if inner is not None and not callable(details):
        return reason_of(inner)
    text = details() if callable(details) else str(error)
    words = " ".join(str(text or type(error).__name__).split())
    return words if len(words) <= 200 else words[:200] + "…"


def _asked(name: str) -> Any:
    """A method of a storage whose second attempt may simply be the first one again."""

    def method(self: "PatientStorage", *arguments: Any, **options: Any) -> Any:
        return self._ask(lambda: getattr(self.impatient, name)(*arguments, **options))

    return method


class PatientStorage(BaseStorage):
    """Another storage, asked until it answers.

    A file on a disk without room is not waited for.

    Args:
        storage: The storage itself.
        name: What messages call it, without a password.
        patience: Seconds that an outage may last.
        clock: Seconds, for tests.
        sleep: Waits that many seconds, for tests.

    Every method raises ``UserError`` when an outage has lasted longer than the patience, and ``OSError`` where the disk
    of a file is full.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.impatient = storage
        self._name = name
        self._outage = Outage(name, patience, clock)
        self._clock = clock
        self._sleep = sleep

    def _ask(self, call: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Make a call; after an outage make it ``again`` (by default as before) until it is answered."""
        pause = FIRST_PAUSE
        while True:
            asked = self._clock()
            try:
                answer = call()
            except Exception as error:
                if is_full_disk(error):  # of this machine: the runs lie there, too, and would fail next
                    raise no_room(self._name) from error
                if not is_outage(error):
                    self._outage.is_over(asked)
                    raise
                self._outage.goes_on(error)
            else:
                self._outage.is_over(asked)
                return answer
            # Hundreds of workers that were cut off together should not come back together.
            self._sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE)
            call = again or call

    create_new_study = _asked("create_new_study")
    create_new_trial = _asked("create_new_trial")
    get_all_studies = _asked("get_all_studies")
    get_all_trials = _asked("get_all_trials")
    get_study_directions = _asked("get_study_directions")
    get_study_id_from_name = _asked("get_study_id_from_name")
    get_study_name_from_id = _asked("get_study_name_from_id")
    get_study_system_attrs = _asked("get_study_system_attrs")
    get_study_user_attrs = _asked("get_study_user_attrs")
    get_trial = _asked("get_trial")
    get_trial_id_from_study_id_trial_number = _asked("get_trial_id_from_study_id_trial_number")
    set_study_system_attr = _asked("set_study_system_attr")
    set_study_user_attr = _asked("set_study_user_attr")
    set_trial_intermediate_value = _asked("set_trial_intermediate_value")
    set_trial_param = _asked("set_trial_param")
    set_trial_system_attr = _asked("set_trial_system_attr")
    set_trial_user_attr = _asked("set_trial_user_attr")

    def delete_study(self, study_id: int) -> None:
        def again() -> None:
            with suppress(KeyError):  # gone: that was the first attempt
                self.impatient.delete_study(study_id)

        self._ask(lambda: self.impatient.delete_study(study_id), again)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        def again() -> bool:
            try:
                return self.impatient.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                trial = self.impatient.get_trial(trial_id)
                if trial.state == state and (values is None or trial.values == list(values)):
                    return True  # our first attempt was carried out
                raise

        return self._ask(lambda: self.impatient.set_trial_state_values(trial_id, state, values), again)

    def remove_session(self) -> None:
        self.impatient.remove_session()
