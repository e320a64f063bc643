"""The Optuna study: which point comes next, and what each came to.

The study lives in ``study.db`` (SQLite) in the sweep's folder and can be opened with Optuna's dashboard. What was
already run is known twice: Optuna keeps finished trials, and each run's directory keeps its result under a name
made from its whole configuration. So a sweep that was stopped, or whose file was extended, goes on without
running anything again.
"""

import hashlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import optuna
from optuna.trial import TrialState

from elas_lightning.errors import UserError
from elas_lightning.runner import RESULT_NAME, RunResult, run
from elas_lightning.sweep.plan import Plan, PlannedRun
from elas_lightning.sweep.spec import Dimension, Point
from elas_lightning.training.interruption import RunEnded


@dataclass(frozen=True)
class RunEvent:
    """A run that has just come to its end, for progress and tables."""

    trial: int
    planned: PlannedRun
    result: RunResult
    fresh: bool


class Budget:
    """Minutes in which runs may be begun; the one that is under way when they are over is finished.

    Args:
        minutes: ``None`` for no end.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self._start = time.perf_counter()

    def claim(self) -> None:
        """Ask for time for one more run.

        Raises:
            BudgetSpent: There is none left.
        """
        if self.minutes is not None and time.perf_counter() - self._start >= 60 * self.minutes:
            raise BudgetSpent


class BudgetSpent(BaseException):
    """The time is over: what is missing is left for the next call. A ``BaseException``, as ``Interrupted`` is."""


class Study:
    """Optuna's study around a plan.

    Args:
        plan: What to run.
        on_run: Called after each run.
        callbacks: Makes the Lightning callbacks of a run, given the run.
        budget: Asked before each run that is not there yet.
    """

    def __init__(
        self,
        plan: Plan,
        on_run: Callable[[RunEvent], None],
        callbacks: Callable[[PlannedRun], list[L.Callback]],
        budget: Budget,
    ) -> None:
        self.plan = plan
        self._budget = budget
        self._on_run = on_run
        self._callbacks = callbacks
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name=_study_name(plan),
            storage=f"sqlite:///{plan.folder / 'study.db'}",
            direction="minimize",
            pruner=_pruner(plan),
            load_if_exists=True,
        )
        self.study.sampler = _sampler(plan, drawn=len(self.study.get_trials(deepcopy=False)))

    def optimize(self) -> None:
        """Run what is still missing.

        Raises:
            Interrupted: Stopped by the user; the run in progress has saved itself.
            BudgetSpent: The time is over.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # one process at a time holds the folder's lock: whoever left these is gone
            self.study.tell(trial.number, state=TrialState.FAIL)
        settled = {_point_key(t.params) for t in self._settled()}
        if self.plan.spec.is_search:
            # what was interrupted or failed is tried again before anything new is drawn
            failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            known = {_point_key(t.params): t.params for t in failed if self._is_complete(t.params)}
        else:
            known = {_point_key(point): point for point in self.plan.spec.grid()}
        missing = {key: point for key, point in known.items() if key not in settled}
        # One by one, so that the point that was interrupted comes first and not behind all that had been queued.
        for key, point in missing.items():
            if key not in self._waiting():
                self.study.enqueue_trial(point)
            self._optimize(1)
        if self.plan.spec.trials is not None:
            self._optimize(self.plan.spec.trials - len(settled) - len(missing))

    def _optimize(self, trials: int) -> None:
        if trials > 0:
            self.study.optimize(self._objective, n_trials=trials, catch=(_RunFailed,))

    def replay(self) -> None:
        """Tell ``on_run`` of the runs of earlier processes, so that tables and progress have them."""
        for trial in self.study.get_trials(deepcopy=False):
            if not self._is_complete(trial.params):
                continue  # not begun
            for seed in self.plan.spec.seeds:
                planned = self.plan.run(trial.params, seed)
                if (planned.request.directory / RESULT_NAME).exists():
                    result = RunResult.read(planned.request.directory)
                    if result.state != "failed":  # those are about to be tried again
                        self._on_run(RunEvent(trial.number, planned, result, fresh=False))

    def importances(self) -> dict[str, float] | None:
        """Share of the objective's variance by parameter (PED-ANOVA); ``None`` for grids and short searches."""
        complete = [t for t in self._settled() if t.state == TrialState.COMPLETE]
        if not self.plan.spec.is_search or len(complete) < 4:
            return None
        return dict(optuna.importance.get_param_importances(self.study))

    def _settled(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def _waiting(self) -> set[str]:
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return {_point_key(trial.system_attrs["fixed_params"]) for trial in waiting}

    def _is_complete(self, point: Point) -> bool:
        return len(point) == len(self.plan.spec.search)

    def _objective(self, trial: optuna.Trial) -> float:
        point = {dimension.name: _suggest(trial, dimension) for dimension in self.plan.spec.search}
        scores = []
        for index, seed in enumerate(self.plan.spec.seeds):
            planned = self.plan.run(point, seed)
            result, fresh = self._run(planned, [PruningCallback(trial, self.plan.spec.objective, index)])
            self._on_run(RunEvent(trial.number, planned, result, fresh))
            if result.state == "failed":
                raise _RunFailed(result.reason)
            if result.state == "pruned":
                raise optuna.TrialPruned(result.reason)
            score = result.metrics[self.plan.spec.objective]
            # a divergence is the worst that a point can come to, not a trial to forget
            scores.append(float("inf") if score is None else score)
        return sum(scores) / len(scores)

    def _run(self, planned: PlannedRun, pruning: list[L.Callback]) -> tuple[RunResult, bool]:
        directory = planned.request.directory
        if (directory / RESULT_NAME).exists():
            stored = RunResult.read(directory)
            if stored.state != "failed":
                return stored, False
        self._budget.claim()
        (directory / RESULT_NAME).unlink(missing_ok=True)
        extra = pruning if self.plan.spec.pruner != "none" else []
        try:
            return run(planned.request, [*self._callbacks(planned), *extra]), True
        except (UserError, RunEnded):
            raise
        except Exception as error:
            # one run that dies (of memory, say) is a row with its reason, not the end of the sweep
            (directory / "traceback.txt").write_text(traceback.format_exc())
            return _failed(planned, error), True


class PruningCallback(L.Callback):
    """Reports validations to Optuna by global step and ends the run when the pruner says so.

    Optuna's own Lightning callback reports by epoch, and a stream has only one.

    Args:
        trial: The trial the run belongs to.
        objective: The figure to report.
        seed_index: Which of the trial's seeds this is: later seeds report at later steps, so that a point's
            second seed is compared with the second seeds of others.
    """

    def __init__(self, trial: optuna.Trial, objective: str, seed_index: int) -> None:
        self._trial = trial
        self._objective = objective
        self._seed_index = seed_index

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        step = self._seed_index * trainer.max_steps + trainer.global_step
        self._trial.report(trainer.callback_metrics[self._objective].item(), step)
        if self._trial.should_prune():
            raise RunEnded("pruned", f"above the median of earlier trials at step {trainer.global_step}")


class _RunFailed(Exception):
    """A run of the trial died; the trial counts as failed and is tried again by the next ``elas sweep``."""


def _study_name(plan: Plan) -> str:
    """The sweep's name with a digest of its search space, since Optuna cannot change a study's choices."""
    space = [asdict(dimension) for dimension in plan.spec.search]
    described = json.dumps([space, plan.size, plan.data, plan.spec.seeds, plan.overrides], default=str)
    return f"{plan.spec.name}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def _sampler(plan: Plan, drawn: int) -> optuna.samplers.BaseSampler:
    # Seeded by the number of trials there are: reproducible, and a resumed search does not draw its first points
    # again. A grid's points are enqueued one by one, so that their order is ours; its sampler is never asked.
    if plan.spec.sampler == "tpe":
        startup = min(8, (plan.spec.trials or 2) // 2)
        return optuna.samplers.TPESampler(n_startup_trials=startup, seed=drawn)
    return optuna.samplers.RandomSampler(seed=drawn)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.spec.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    return optuna.pruners.NopPruner()


def _suggest(trial: optuna.Trial, dimension: Dimension) -> Any:
    if dimension.is_range:
        assert dimension.low is not None
        assert dimension.high is not None
        return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)
    return trial.suggest_categorical(dimension.name, list(dimension.options))


def _point_key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _failed(planned: PlannedRun, error: Exception) -> RunResult:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    result = RunResult(
        run=planned.request.directory.name,
        state="failed",
        reason=reason,
        seed=planned.seed,
        config={},
        overlays=[str(path) for path in planned.request.overlays],
        overrides=dict(planned.request.overrides),
        metrics={},
        backend={},
        data={},
        environment={"command": planned.request.command},
        started="",
        finished="",
    )
    planned.request.directory.mkdir(parents=True, exist_ok=True)
    result.write(planned.request.directory)
    return result
