"""A sweep's search space in Optuna's words, and what mattered in it."""

import hashlib
import json
import re
import warnings
from dataclasses import asdict
from math import isfinite
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from elas_lightning.layout import overlay_path
from elas_lightning.sweep.objectives import Direction
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.spec import Dimension

# With fewer the best quarter is two points, after which a parameter without any effect comes out first as often as the
# one that decides.
_ENOUGH_POINTS = 10


def study_name(plan: Plan) -> str:
    """The sweep's name with a digest of what its trials stand for.

    Optuna can change neither a study's choices nor its objectives. And a trial that has ended says that its point needs
    no more runs: of a base, an override or an overlay that was changed since, all points are still to be run.
    """
    spec = plan.spec
    space = [asdict(dimension) for dimension in spec.search]
    named = [overlay_path(name) for dimension in spec.search for name in dimension.overlays.values()]
    overlays = [path.read_text() for path in (*plan.base_overlays, *named)]
    objectives = [objective.name for objective in spec.objectives]
    made_from: list[Any] = [plan.size, plan.data, spec.seeds, spec.overrides, plan.overrides, overlays]
    described = json.dumps([space, objectives, *made_from], default=str)
    return f"{plan.spec.name}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def is_of(study: str, sweep: str) -> bool:
    """Whether a study's name is one that the sweep of this name has, or had with another file."""
    return re.fullmatch(rf"{re.escape(sweep)}-[0-9a-f]{{8}}", study) is not None


def build_sampler(plan: Plan, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a sweep's file names; a grid's is never asked."""
    if plan.spec.sampler == "tpe":
        startup = min(8, (plan.spec.trials or 2) // 2)
        return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def distribution_of(plan: Plan, dimension: Dimension) -> BaseDistribution:
    """A dimension's values, as Optuna describes them."""
    if dimension.is_range:
        assert dimension.low is not None
        assert dimension.high is not None
        if plan.is_whole(dimension):
            return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return CategoricalDistribution(list(dimension.options))


def importances(study: optuna.Study, direction: Direction) -> dict[str, float] | None:
    """How much each parameter decides whether a point is among the best quarter.

    PED-ANOVA (arXiv 2304.10255) compares where the best points lie with where all of them do; it is no share of the
    objective's variance. Optuna's own choice, the best tenth, would be two points of a search of twenty.

    Args:
        study: With finished points.
        direction: Of its first objective, which alone is looked at.

    Returns:
        Shares that sum to 1, by parameter; ``None`` for fewer than ten points that finished without diverging.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if sum(isfinite(trial.values[0]) for trial in complete) < _ENOUGH_POINTS:
        return None
    sign = 1 if direction == "minimize" else -1
    with warnings.catch_warnings():
        # that low values are the good ones, which is said whenever a target is named; and that all are equal
        warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes|Target and region")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        return optuna.importance.get_param_importances(study, evaluator=evaluator, target=lambda t: sign * t.values[0])
