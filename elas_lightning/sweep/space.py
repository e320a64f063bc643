"""A sweep's search space in Optuna's words."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.spec import Dimension


def study_name(plan: Plan) -> str:
    """The sweep's name with a digest of its search space, since Optuna cannot change a study's choices."""
    space = [asdict(dimension) for dimension in plan.spec.search]
    choices: list[Any] = [space, plan.size, plan.data, plan.spec.seeds, plan.overrides]
    if len(plan.spec.objectives) > 1:
        choices.append([objective.name for objective in plan.spec.objectives])
    described = json.dumps(choices, default=str)
    return f"{plan.spec.name}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def build_sampler(plan: Plan, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a sweep's file names; a grid's is never asked."""
    if plan.spec.sampler == "tpe":
        startup = min(8, (plan.spec.trials or 2) // 2)
        return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """A dimension's values, as Optuna describes them."""
    if dimension.is_range:
        assert dimension.low is not None
        assert dimension.high is not None
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return CategoricalDistribution(list(dimension.options))
