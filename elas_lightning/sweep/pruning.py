"""Which points are stopped early, and what they are judged by.

A seed decides initialisation and data order, and moves the whole curve of a run, often by more than one point differs
from the next. Optuna's median pruner is blind to that: it holds the best figure that a trial has reached at *any*
step, so the easiest of its seeds so far, against the others at the present one. Here a point is compared like with
like: its seed ``s`` at step ``t`` with the same seed of the other points at the same step, so that what the seed does
to all of them cancels. And all the seeds that the point has run are evidence: after a good first seed, one bad second
seed is no reason to stop, unless the two together are worse than the median.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isnan
from statistics import median
from typing import Any

from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.spec import Point, Pruning


def report_step(seed_index: int, step: int, max_steps: int) -> int:
    """The step at which a trial reports a validation: its seeds come one after another on one axis."""
    return seed_index * max_steps + step


def build_pruner(plan: Plan) -> BasePruner:
    """The pruner that a sweep's file names."""
    if plan.spec.pruner == "none":
        return NopPruner()
    return PairedMedianPruner(plan.steps, plan.spec.pruning, plan.spec.baseline)


class PairedMedianPruner(BasePruner):
    """Prunes a point that is worse than the median of the others, seed by seed. Lower figures are better.

    At step ``t`` of its seed ``s`` the point has, for each of its seeds up to ``s``, a ratio: its own figure at ``t``
    over the median of the other points' with that seed at ``t``. It is stopped if the mean of these ratios is above
    one. A point that was pruned or has diverged before it got there counts as worse than any that did. Were it left
    out, the median would be that of the survivors, which becomes stricter from step to step until hardly a point is
    left.

    Args:
        max_steps: Optimizer steps of a run.
        pruning: When it may begin.
        baseline: A point, or a part of one, that is never stopped: what the others are held against has to be whole.
    """

    def __init__(self, max_steps: int, pruning: Pruning, baseline: Point) -> None:
        self._max_steps = max_steps
        self._pruning = pruning
        self._baseline = baseline

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop a running trial now."""
        is_baseline = bool(self._baseline) and self._baseline.items() <= trial.params.items()
        if is_baseline or not trial.intermediate_values:
            return False
        seed_index, step = self._place(max(trial.intermediate_values))
        if step < self._pruning.min_fraction * self._max_steps:
            return False
        others = _points(study, without=trial.params)
        ratios = []
        for index in range(seed_index + 1):
            place = report_step(index, step, self._max_steps)
            reached = sum(place in point.values for point in others)
            if place not in trial.intermediate_values or reached < self._pruning.startup_points:
                continue
            figures = [point.at(place) for point in others]
            middle = median(figure for figure in figures if figure is not None)
            if middle == inf:
                return False  # half of all points have been pruned or have diverged: this one is in the better half
            ratios.append(trial.intermediate_values[place] / middle)
        return bool(ratios) and not sum(ratios) / len(ratios) <= 1  # "not": NaN is no good sign

    def _place(self, reported: int) -> tuple[int, int]:
        """Seed index and step in the run of a reported step; a run's last step is its own, not the next one's zero."""
        seed_index = (reported - 1) // self._max_steps
        return seed_index, reported - seed_index * self._max_steps


@dataclass
class _Other:
    """What is known of another point: a point whose worker was lost has several trials, and counts once."""

    values: dict[int, float] = field(default_factory=dict)
    is_lost: bool = False

    def at(self, place: int) -> float | None:
        """Its figure, infinite if it was pruned or has diverged before; ``None`` if it has not got there yet."""
        return self.values.get(place, inf if self.is_lost else None)


def _points(study: Study, without: Mapping[str, Any]) -> list[_Other]:
    found: dict[str, _Other] = {}
    states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    for trial in study.get_trials(deepcopy=False, states=states):
        if trial.params != without:
            point = found.setdefault(json.dumps(trial.params, sort_keys=True), _Other())
            # a last validation before a divergence may be no number, of which a median makes anything
            point.values |= {place: inf if isnan(v) else v for place, v in trial.intermediate_values.items()}
            diverged = trial.state == TrialState.COMPLETE and trial.value == inf
            point.is_lost |= diverged or trial.state == TrialState.PRUNED
    return list(found.values())
