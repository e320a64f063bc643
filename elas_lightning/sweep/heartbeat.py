"""Who is alive: a worker's trial carries a counter that goes up, and who sees it stand still takes the trial back.

Optuna's own heartbeat works inside ``study.optimize`` and on databases alone. Ours is an attribute of the trial, which
every storage has; and it compares no clocks, since a counter that has not changed while *my* clock went on says all.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from logging import getLogger
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from elas_lightning.sweep.patience import PatientStorage

_log = getLogger(__name__)
ATTRIBUTE = "elas:heartbeat"


class Heartbeat:
    """Writes a trial's counter, with host and process, while its ``with`` block runs.

    A beat that fails is made up for by the next one, so an outage of the storage neither ends nor stops it.

    Args:
        storage: Of the study.
        trial_id: Of a trial in state ``RUNNING``.
        interval: Seconds from beat to beat.
    """

    def __init__(self, storage: BaseStorage, trial_id: int, interval: float) -> None:
        # Patience would hold the thread for minutes after the block has ended.
        self._storage = storage.impatient if isinstance(storage, PatientStorage) else storage
        self._trial_id = trial_id
        self._interval = interval
        self._count = 0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {trial_id}", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether the trial has been taken away meanwhile: it was put an end to by another process."""
        return self._lost.is_set()

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5.0)  # a beat may hang in a dead connection; as a daemon it keeps nobody

    def _beat(self) -> None:
        while not self._ended.is_set():
            self._count += 1
            value: Any = {"count": self._count, "host": socket.gethostname(), "pid": os.getpid()}
            try:
                self._storage.set_trial_system_attr(self._trial_id, ATTRIBUTE, value)
            except (UpdateFinishedTrialError, KeyError):
                if not self._ended.is_set():
                    self._lost.set()
                break
            except Exception as error:
                _log.debug("beat %d of trial %d failed: %s", self._count, self._trial_id, error)
            self._ended.wait(self._interval)
        self._storage.remove_session()


class StaleWatch:
    """Finds running trials whose counter stands still.

    Time counts only while the watch is looking: between two looks at most a quarter of the grace. So a watch that was
    itself cut off from the storage, or asleep, does not take everybody else for dead when it comes back. Look at least
    that often.

    Args:
        storage: Of the study.
        study_id: The study.
        grace: Seconds of this process's clock; several times the interval of the heartbeats.
        clock: Seconds that never go back.
    """

    def __init__(
        self, storage: BaseStorage, study_id: int, grace: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self._grace = grace
        self._clock = clock
        self._looked: float | None = None
        # by the trial's id: its heartbeat, and for how many seconds it has been this one
        self._still: dict[int, tuple[Any, float]] = {}

    def stale(self) -> list[FrozenTrial]:
        """Look once; gives the running trials that have not changed for the grace, oldest first."""
        running = self._storage.get_all_trials(self._study_id, deepcopy=False, states=(TrialState.RUNNING,))
        now = self._clock()
        passed = 0.0 if self._looked is None else min(now - self._looked, self._grace / 4)
        self._looked = now
        still = {}
        for trial in running:
            beat = trial.system_attrs.get(ATTRIBUTE)
            known = self._still.get(trial._trial_id)
            unchanged = known is not None and known[0] == beat
            still[trial._trial_id] = (beat, known[1] + passed if known is not None and unchanged else 0.0)
        self._still = still
        return [trial for trial in running if self._still[trial._trial_id][1] >= self._grace]
