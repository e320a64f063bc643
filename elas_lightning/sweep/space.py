"""A sweep's search space in Optuna's words."""

import hashlib
import json
import re
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from elas_lightning.layout import overlay_path
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.spec import Dimension


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
