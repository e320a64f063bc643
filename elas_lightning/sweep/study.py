"""The Optuna study of a sweep: which places are free, and what each came to.

The study lives in the sweep's folder or in a database and can be opened with Optuna's dashboard. What was
already run is known twice: the study keeps every result as an attribute of its trial, and each run's directory keeps
it under a name made from its whole configuration. So a sweep that was stopped, or whose file was extended, goes on
without running anything again, on this machine or another.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from elas_lightning.result import RunResult, finite
from elas_lightning.sweep import claims
from elas_lightning.sweep.heartbeat import StaleWatch
from elas_lightning.sweep.isolated import failed, has_result
from elas_lightning.sweep.objectives import values_of
from elas_lightning.sweep.origin import here, is_gone
from elas_lightning.sweep.plan import Plan, PlannedRun
from elas_lightning.sweep.pruning import build_pruner
from elas_lightning.sweep.space import build_sampler, distribution_of, importances, is_of, study_name
from elas_lightning.sweep.spec import Point

# An attribute of a study: how many runs and points it is going to have, what is looked at, what is a factor of what.
PLANNED = "planned"
# With the run's name behind it, the key of a result among a trial's attributes.
_RESULT = "result "


@dataclass(frozen=True)
class RunEvent:
    """A run that has come to its end, for progress and tables; ``seconds`` by the clock of who waited for it."""

    trial: int
    planned: PlannedRun
    result: RunResult
    seconds: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A place that this process has taken: its running trial and the point to run."""

    trial: optuna.Trial
    place: str
    point: Point

    @property
    def id(self) -> int:
        """The trial's in its storage."""
        return self.trial._trial_id


class TrialLost(Exception):
    """The trial was taken away from this worker, which others took for dead; its work is theirs now."""


class Study:
    """Optuna's study around a plan.

    Args:
        plan: What to run.
        storage: Where the study lives.
        grace: Seconds without a sign of life after which another machine's worker counts as dead.
        retry_below: Failures of trials below this number are tried again; ``None`` for all there are now.
    """

    def __init__(self, plan: Plan, storage: BaseStorage, grace: float, retry_below: int | None = None) -> None:
        self.plan = plan
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name=study_name(plan),
            storage=storage,
            directions=[objective.direction for objective in plan.spec.objectives],
            pruner=build_pruner(plan),
            load_if_exists=True,
        )
        self.storage = self.study._storage  # with Optuna's cache
        described = {
            "runs": plan.planned_runs,
            "points": plan.planned_runs // len(plan.spec.seeds),
            "objectives": [objective.name for objective in plan.spec.objectives],
            "relative_to": {d.name: d.relative_to for d in plan.spec.search if d.relative_to},
        }
        if self.study.user_attrs.get(PLANNED) != described:
            self.study.set_user_attr(PLANNED, described)
        self._watch = StaleWatch(self.storage, self.study._study_id, grace)
        known = len(self.study.get_trials(deepcopy=False))
        self.retry_below = known if retry_below is None else retry_below
        self._earlier = self._results_of_earlier_studies()
        self._told: set[tuple[int, str, str]] = set()
        self._planned: dict[tuple[str, int], PlannedRun] = {}

    # what there is to do

    def claim(self, may_begin: Callable[[], None]) -> Claim | None:
        """Take a free place; ``None`` if there is none at present.

        Args:
            may_begin: Asked before a place is taken in which something has to be run; raises if nothing may.
        """
        while (free := next(self._free(), None)) is not None:
            place, point = free
            if not all(self.result(self.planned(point, seed)) for seed in self.plan.spec.seeds):
                may_begin()
            if (claim := self._take(place, point)) is not None:
                return claim
            # others came at the same moment: not to meet them at the next one
            time.sleep(random.uniform(0, 0.2))
        trials = self.plan.spec.trials
        if trials is not None and len(self.board().places) < trials:
            may_begin()
            return self._draw()
        return None

    def is_settled(self) -> bool:
        """Whether there is nothing left to do, by anyone."""
        board = self.board()
        places = self._places(board)
        enough = self.plan.spec.trials is None or len(places) >= self.plan.spec.trials
        return enough and all(board.is_settled(place, self.retry_below) for place in places)

    def board(self) -> claims.Board:
        """The trials as they are now."""
        spec = self.plan.spec
        return claims.Board(self.study.get_trials(deepcopy=False), len(spec.search), spec.is_search)

    def _places(self, board: claims.Board) -> dict[str, Point]:
        if self.plan.spec.is_search:
            return board.places
        return {claims.point_key(point): point for point in self.plan.spec.grid()}

    def _free(self) -> Iterator[tuple[str, Point]]:
        board = self.board()
        for place, point in self._places(board).items():
            if len(point) == len(self.plan.spec.search) and board.is_free(place, self.retry_below):
                yield place, point

    def _take(self, place: str, point: Point) -> Claim | None:
        distributions = {d.name: distribution_of(self.plan, d) for d in self.plan.spec.search}
        earlier = self.board().of(place)
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=point,
            distributions=distributions,
            # the pruner compares at steps that an earlier trial of the place may have reached
            intermediate_values={step: v for t in earlier for step, v in t.intermediate_values.items()},
            system_attrs={claims.PLACE: place, claims.WORKER: here()},
        )
        template.datetime_start = datetime.now()
        trial_id = self.storage.create_new_trial(self.study._study_id, template)
        return self._unless_surplus(optuna.Trial(self.study, trial_id), place)

    def _draw(self) -> Claim | None:
        trial_id = self.storage.create_new_trial(self.study._study_id)
        number = self.storage.get_trial(trial_id).number
        place = f"draw {number}"
        # seeded by the draw: reproducible, and two workers at once do not draw the same
        self.study.sampler = build_sampler(self.plan, seed=number)
        trial = optuna.Trial(self.study, trial_id)
        self.storage.set_trial_system_attr(trial_id, claims.WORKER, here())
        if self._unless_surplus(trial, place) is None:
            return None
        for dimension in self.plan.spec.search:
            trial._suggest(dimension.name, distribution_of(self.plan, dimension))
        return Claim(trial, place, dict(trial.params))

    def _unless_surplus(self, trial: optuna.Trial, place: str) -> Claim | None:
        if not self._is_surplus(trial):
            return Claim(trial, place, dict(trial.params))
        self._end(trial._trial_id, claims.DUPLICATE, "another worker was there first")
        return None

    def _is_surplus(self, trial: optuna.Trial) -> bool:
        board = self.board()
        own = next(t for t in board.trials if t.number == trial.number)
        return board.is_surplus(own, self.plan.spec.trials)

    # what came of it

    def result(self, planned: PlannedRun) -> RunResult | None:
        """The result of a run that needs not be made again: in this study, an earlier one of the sweep, or here."""
        name = planned.request.directory.name
        for trial in self.board().trials:
            if (kept := _kept(trial, name)) is not None and kept[0].state != "failed":
                return kept[0]
        if name in self._earlier:
            return self._earlier[name]
        return _found_here(planned)

    def keep(self, claim: Claim, result: RunResult, seconds: float) -> None:
        """Write a run's result into its trial, where every machine sees it.

        Raises:
            TrialLost: The trial is no longer this worker's.
        """
        with _owned():
            content = {"result": finite(asdict(result)), "seconds": round(seconds, 3)}
            claim.trial.set_user_attr(_RESULT + result.run, content)

    def conclude(self, claim: Claim, results: list[RunResult]) -> None:
        """Tell what a place came to, by the results of its seeds.

        Raises:
            TrialLost: The trial is no longer this worker's.
        """
        bad = next((r for r in results if r.state == "failed"), None)
        with _owned():
            if self._is_surplus(claim.trial):
                self._end(claim.id, claims.DUPLICATE, "another worker was there first")
            elif bad is not None:
                self._end(claim.id, claims.FAILED, str(bad.reason))
            elif (pruned := next((r for r in results if r.state == "pruned"), None)) is not None:
                claim.trial.set_user_attr(claims.REASON, str(pruned.reason))
                self.study.tell(claim.trial, state=TrialState.PRUNED)
            else:
                # what a diverged run still has, its speed and its size, must not count for it
                measured = [r.metrics if r.state == "complete" else {} for r in results]
                self.study.tell(claim.trial, values_of(self.plan.spec.objectives, measured))

    def reported(self, claim: Claim) -> set[int]:
        """Steps whose validations the trial has."""
        return set(self.storage.get_trial(claim.id).intermediate_values)

    def report(self, claim: Claim, value: float, step: int) -> None:
        """Tell a validation's figure.

        Raises:
            TrialLost: The trial is no longer this worker's.
        """
        with _owned():
            if len(self.plan.spec.objectives) == 1:
                claim.trial.report(value, step)
            else:  # Optuna's trial refuses; it is still how far the run has got
                self.storage.set_trial_intermediate_value(claim.id, step, value)

    def verdict(self, claim: Claim) -> str | None:
        """Why the pruner would end the point here; ``None`` if it would not."""
        return "above the median of earlier trials" if claim.trial.should_prune() else None

    def check_ours(self, claim: Claim) -> None:
        """Make sure that nobody took this worker for dead.

        Raises:
            TrialLost: Somebody did.
        """
        if self.storage.get_trial(claim.id).state.is_finished():
            raise TrialLost

    def release(self, claim: Claim, reason: str) -> None:
        """Give a place back for the next call to go on with."""
        with suppress(TrialLost), _owned():
            self._end(claim.id, claims.STOPPED, reason)

    def put_back_lost(self) -> None:
        """End the trials of workers that are gone, so that their places are free again."""
        stale = {trial._trial_id for trial in self._watch.stale()}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial._trial_id in stale or is_gone(trial.system_attrs.get(claims.WORKER)):
                with suppress(TrialLost), _owned():
                    self._put_back(trial)

    def _put_back(self, trial: FrozenTrial) -> None:
        board = self.board()
        if board.lost_in_vain(board.place(trial)) + 1 < claims.LOST_LIMIT:
            self._end(trial._trial_id, claims.LOST, "its worker was lost")
            return
        reason = f"its worker was lost {claims.LOST_LIMIT} times without a validation in between"
        for seed in self.plan.spec.seeds if board.is_whole(trial) else ():
            planned = self.planned(trial.params, seed)
            if self.result(planned) is None:
                content = {"result": asdict(failed(planned.request, seed, reason)), "seconds": 0.0}
                key = _RESULT + planned.request.directory.name
                self.storage.set_trial_user_attr(trial._trial_id, key, content)
        self._end(trial._trial_id, claims.FAILED, reason)

    def _end(self, trial_id: int, how: str, reason: str) -> None:
        self.storage.set_trial_user_attr(trial_id, claims.ENDED, how)
        self.storage.set_trial_user_attr(trial_id, claims.REASON, reason)
        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    # what others have to know

    def planned(self, point: Point, seed: int) -> PlannedRun:
        """The run of a point with a seed, as the overlays were when it was first asked for."""
        key = (claims.point_key(point), seed)
        if key not in self._planned:
            self._planned[key] = self.plan.run(point, seed)
        return self._planned[key]

    def events(self) -> Iterator[RunEvent]:
        """Runs that have ended since this was last asked, whoever made them; of a place's trials the last one's."""
        for trial in self.board().trials:
            if len(trial.params) < len(self.plan.spec.search):
                continue
            for seed in self.plan.spec.seeds:
                planned = self.planned(trial.params, seed)
                name = planned.request.directory.name
                # trials of before results were kept in the study
                here_only = trial.state.is_finished() and claims.ENDED not in trial.user_attrs
                result, seconds = _kept(trial, name) or (_found_here(planned) if here_only else None, 0.0)
                if result is None or (trial.number, name, result.state) in self._told:
                    continue
                self._told.add((trial.number, name, result.state))
                yield RunEvent(trial.number, planned, result, seconds)

    def is_about_to_be_tried_again(self, event: RunEvent) -> bool:
        """Whether a failed run does not count as done in this call."""
        return event.result.state == "failed" and event.trial < self.retry_below

    def active(self) -> list[PlannedRun]:
        """Runs that some worker is at now."""
        return [planned for trial in self.running() if (planned := self.active_run(trial)) is not None]

    def running(self) -> list[FrozenTrial]:
        """Trials that some worker has now."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def active_run(self, trial: FrozenTrial) -> PlannedRun | None:
        """The run that a running trial's worker is at; ``None`` between two."""
        name = trial.system_attrs.get(claims.RUN)
        if name is None or len(trial.params) < len(self.plan.spec.search):
            return None
        runs = (self.planned(trial.params, seed) for seed in self.plan.spec.seeds)
        return next((run for run in runs if run.request.directory.name == name), None)

    def left_out(self) -> int:
        """Runs that will not be made: of points that were pruned with an earlier seed, drawn a second time, or
        rounded to the configuration of another."""
        settled = self.study.get_trials(deepcopy=False, states=claims.SETTLED)
        runs = [self.planned(trial.params, seed) for trial in settled for seed in self.plan.spec.seeds]
        made = {run.request.directory.name: run for run in runs}
        return len(runs) - sum(self.result(run) is not None for run in made.values())

    def importances(self) -> dict[str, float] | None:
        """How much each parameter matters, see :func:`~elas_lightning.sweep.space.importances`; ``None`` for grids."""
        direction = self.plan.spec.objectives[0].direction
        return importances(self.study, direction) if self.plan.spec.is_search else None

    def _results_of_earlier_studies(self) -> dict[str, RunResult]:
        """Of the same sweep with other seeds or choices; a run is the same wherever it has the same name."""
        found: dict[str, RunResult] = {}
        for study in self.storage.get_all_studies():
            if not is_of(study.study_name, self.plan.spec.name) or study._study_id == self.study._study_id:
                continue
            for trial in self.storage.get_all_trials(study._study_id, deepcopy=False):
                found.update({r.run: r for r in results_of(trial) if r.state != "failed"})
        return found


@contextmanager
def _owned() -> Iterator[None]:
    """Turn "this trial is finished" into :class:`TrialLost`."""
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise TrialLost from error
    except ValueError as error:
        if str(error).startswith("Cannot tell a"):
            raise TrialLost from error
        raise


def results_of(trial: FrozenTrial) -> list[RunResult]:
    """The results that a trial keeps."""
    names = [key.removeprefix(_RESULT) for key in trial.user_attrs if key.startswith(_RESULT)]
    return [kept[0] for name in names if (kept := _kept(trial, name))]


def _kept(trial: FrozenTrial, name: str) -> tuple[RunResult, float] | None:
    content = trial.user_attrs.get(_RESULT + name)
    return (RunResult(**content["result"]), content["seconds"]) if content else None


def _found_here(planned: PlannedRun) -> RunResult | None:
    return RunResult.read(planned.request.directory) if has_result(planned.request) else None
