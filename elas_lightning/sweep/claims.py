"""Who may run what: the rules by which workers that know nothing of each other fill one study.

A worker takes a place by *creating* a running trial for it: storages number trials one after another, so that of two
workers at once one has the lower number and both can see which. No lock, and no trial that waits in a queue:
to move a waiting trial to running is not atomic on SQLite.

A *place* is what the study has to fill: a point of a grid, or one of a search's draws. Trials of one place follow
each other when a worker was lost or a run failed. Of a place's live trials the lowest number counts; the others end
as duplicates.
"""

import json
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from elas_lightning.sweep.spec import Point

LIVE = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
SETTLED = (TrialState.COMPLETE, TrialState.PRUNED)
# attributes of trials: why one did not finish is for people, too
ENDED, REASON = "ended", "reason"
PLACE, WORKER, RUN = "elas:place", "elas:worker", "elas:run"
# values of ENDED
FAILED, LOST, STOPPED, DUPLICATE = "failed", "lost", "stopped", "duplicate"
LOST_LIMIT = 10


def point_key(point: Point) -> str:
    """A point as the name of its place in a grid."""
    return json.dumps(point, sort_keys=True)


class Board:
    """The trials of a study, by the place that each is for.

    Args:
        trials: All of them.
        dimensions: How many parameters a whole point has.
        is_search: Whether places are draws rather than points.
    """

    def __init__(self, trials: Sequence[FrozenTrial], dimensions: int, is_search: bool) -> None:
        self.trials = [t for t in trials if t.state != TrialState.WAITING and ended(t) != DUPLICATE]
        self._dimensions = dimensions
        self._is_search = is_search
        self._places: dict[str, list[FrozenTrial]] = {}
        for trial in self.trials:
            # a draw whose worker was lost before it knew its point leaves nothing to go on with
            if self.is_whole(trial) or trial.state in LIVE:
                self._places.setdefault(self.place(trial), []).append(trial)

    def is_whole(self, trial: FrozenTrial) -> bool:
        """Whether all parameters of the trial are known."""
        return len(trial.params) == self._dimensions

    def place(self, trial: FrozenTrial) -> str:
        """What the trial is for."""
        if self._is_search:
            return str(trial.system_attrs.get(PLACE, f"draw {trial.number}"))
        return point_key(trial.params)

    @property
    def places(self) -> dict[str, Point]:
        """Places that have been taken at some time, with their points, by their first trial's number."""
        return {place: trials[0].params for place, trials in self._places.items()}

    def of(self, place: str) -> list[FrozenTrial]:
        """The trials of a place, in their order."""
        return self._places.get(place, [])

    def live(self, place: str) -> FrozenTrial | None:
        """The trial that counts for a place, if it has one that is running or settled."""
        return next((t for t in self.of(place) if t.state in LIVE), None)

    def last(self, place: str) -> FrozenTrial | None:
        """The place's latest trial."""
        return next(reversed(self.of(place)), None)

    def is_free(self, place: str, retry_below: int) -> bool:
        """Whether a worker may take the place now.

        Args:
            place: Of a grid or a draw.
            retry_below: Failures of trials with lower numbers are tried again: those from before the call, not its
                own, else a run that always fails would be tried for ever.
        """
        if self.live(place) is not None:
            return False
        last = self.last(place)
        return last is None or ended(last) != FAILED or last.number < retry_below

    def is_settled(self, place: str, retry_below: int) -> bool:
        """Whether there is nothing left to be done for the place."""
        live = self.live(place)
        if live is not None:
            return live.state in SETTLED
        return not self.is_free(place, retry_below)

    def is_surplus(self, trial: FrozenTrial, allowed: int | None) -> bool:
        """Whether a running trial has nothing to be for: its place is another's, or all draws are made.

        Args:
            trial: Just created, or about to be told.
            allowed: How many draws there are; ``None`` for a grid.
        """
        place = self.place(trial)
        live = self.live(place)
        if live is not None and live.number < trial.number:
            return True
        before = sum(1 for trials in self._places.values() if trials[0].number < trial.number)
        is_first = self._places.get(place, [trial])[0].number == trial.number
        return allowed is not None and is_first and before >= allowed

    def lost_in_vain(self, place: str) -> int:
        """How often in a row the place's worker was lost without a validation that lies further than any before."""
        furthest, count = -1, 0
        for trial in self.of(place):
            reached = max(trial.intermediate_values, default=-1)
            count = 0 if reached > furthest or ended(trial) == FAILED else count + (ended(trial) == LOST)
            furthest = max(furthest, reached)
        return count


def ended(trial: FrozenTrial) -> str | None:
    """Why a trial did not finish; ``None`` for one that did or may still. Other people's failures are failures."""
    if trial.state != TrialState.FAIL:
        return None
    return str(trial.user_attrs.get(ENDED, FAILED))
