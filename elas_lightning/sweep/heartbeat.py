"""Signs of life."""

import threading
import time

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

_KEY = "elas:heartbeat"


class Heartbeat:
    """Counts in a trial's system attributes while the context is open."""

    def __init__(self, storage: BaseStorage, trial_id: int, interval: float) -> None:
        self._storage, self._trial_id, self._interval = storage, trial_id, interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(self._interval):
            count += 1
            try:
                self._storage.set_trial_system_attr(self._trial_id, _KEY, count)
            except UpdateFinishedTrialError:
                return


class StaleWatch:
    """Running trials whose counter stands still."""

    def __init__(self, storage: BaseStorage, study_id: int, grace: float) -> None:
        self._storage, self._study_id, self._grace = storage, study_id, grace
        self._seen: dict[int, tuple[int, float]] = {}

    def stale(self) -> list[FrozenTrial]:
        """Those that were not seen to change for the grace time."""
        now, found = time.monotonic(), []
        for trial in self._storage.get_all_trials(
            self._study_id, deepcopy=False, states=(TrialState.RUNNING,)
        ):
            count = trial.system_attrs.get(_KEY, 0)
            seen = self._seen.get(trial._trial_id)
            if seen is None or seen[0] != count:
                self._seen[trial._trial_id] = (count, now)
            elif now - seen[1] >= self._grace:
                found.append(trial)
        return found
