"""Points are judged like with like; the baseline never ends early; fewer good points are lost than by Optuna."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import TrialState, create_trial

from elas_lightning.errors import UserError
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.pruning import PairedMedianPruner, build_pruner, report_step
from elas_lightning.sweep.spec import Pruning

STEPS = 100
SPACE = {"p": optuna.distributions.IntDistribution(0, 1000)}


def _study(points: list[dict[int, float]], state: TrialState = TrialState.COMPLETE) -> optuna.Study:
    study = optuna.create_study()
    for number, values in enumerate(points):
        study.add_trial(
            create_trial(state=state, value=1.0, params={"p": number}, distributions=SPACE, intermediate_values=values)
        )
    return study


def _running(values: dict[int, float], point: int = 999) -> optuna.trial.FrozenTrial:
    return create_trial(state=TrialState.RUNNING, params={"p": point}, distributions=SPACE, intermediate_values=values)


def _pruner(baseline: dict[str, Any] | None = None, **pruning: Any) -> PairedMedianPruner:
    return PairedMedianPruner(STEPS, Pruning(**pruning), baseline or {})


def test_worse_than_the_median_of_the_same_seed_and_step_is_pruned() -> None:
    study = _study([{50: 10.0 + p, 150: 20.0 + p} for p in range(5)])
    assert _pruner().prune(study, _running({50: 12.5}))
    assert not _pruner().prune(study, _running({50: 11.5}))
    # the second seed is hard for everyone: 21 would be far above all first seeds
    assert not _pruner().prune(study, _running({50: 11.5, 150: 21.0}))


def test_the_seeds_are_evidence_together() -> None:
    study = _study([{50: 10.0 + p, 150: 10.0 + p} for p in range(5)])
    assert not _pruner().prune(study, _running({50: 10.0, 150: 12.5}))  # a good first seed, a bad second one
    assert _pruner().prune(study, _running({50: 11.8, 150: 12.5}))


def test_the_baseline_is_never_pruned() -> None:
    study = _study([{50: 10.0 + p} for p in range(5)])
    assert not _pruner({"p": 999}).prune(study, _running({50: 1e9}))
    assert _pruner({"p": 998}).prune(study, _running({50: 1e9}))


def test_it_waits_for_points_and_steps() -> None:
    bad = _running({50: 1e9})
    assert not _pruner().prune(_study([{50: 1.0}] * 3), bad)
    assert _pruner(startup_points=3).prune(_study([{50: 1.0}] * 3), bad)
    study = _study([{20: 1.0, 25: 1.0}] * 5)
    assert not _pruner().prune(study, _running({20: 2.0}))
    assert _pruner().prune(study, _running({25: 2.0}))
    assert not _pruner().prune(study, _running({}))


def test_a_point_with_several_trials_counts_once_and_not_against_itself() -> None:
    study = _study([{50: 1.0}, {50: 1.0}, {50: 1.0}, {50: 5.0}], TrialState.PRUNED)
    for _ in range(9):  # lost workers of point 999 got just as far
        study.add_trial(
            create_trial(state=TrialState.FAIL, params={"p": 999}, distributions=SPACE, intermediate_values={50: 9.0})
        )
    assert _pruner().prune(study, _running({50: 9.0}))


@pytest.mark.parametrize("place", range(5))
def test_a_last_validation_that_is_no_number_counts_as_the_worst(place: int) -> None:
    figures = [10.0, 11.0, 12.0, 13.0]
    study = _study([{50: value} for value in (*figures[:place], float("nan"), *figures[place:])])
    assert not _pruner().prune(study, _running({50: 11.9}))
    assert _pruner().prune(study, _running({50: 12.1}))


def test_diverged_points_stay_in_the_median_as_pruned_ones_do() -> None:
    study = _study([{50: 10.0 + p} for p in range(4)])
    for number in range(100, 103):
        study.add_trial(
            create_trial(value=float("inf"), params={"p": number}, distributions=SPACE, intermediate_values={25: 9.0})
        )
    assert not _pruner().prune(study, _running({50: 12.5}))  # the fourth of eight
    assert _pruner().prune(study, _running({50: 13.5}))


def test_no_number_is_pruned_and_the_end_of_a_run_is_its_own() -> None:
    study = _study([{100: 1.0, 150: 1.0} for _ in range(5)])
    assert _pruner().prune(study, _running({100: float("nan")}))
    assert _pruner().prune(study, _running({100: 2.0}))  # step 100 of the first seed, not step 0 of the second
    assert report_step(1, 50, STEPS) == 150


def _curves(draw: np.random.Generator, points: int, seeds: int) -> tuple[np.ndarray, list[dict[int, float]]]:
    """Losses of points whose quality differs by a few per cent, under seeds that move all of them by a fifth."""
    quality = draw.normal(0, 0.03, points)
    shift = draw.normal(0, 0.2, seeds)
    steps = np.arange(10, STEPS + 1, 10)
    values = [
        {
            report_step(s, int(t), STEPS): float(
                30 * np.exp(quality[p] + shift[s] + draw.normal(0, 0.01) + 2 * np.exp(-t / 30))
            )
            for s in range(seeds)
            for t in steps
        }
        for p in range(points)
    ]
    return quality, values


def _lost_and_saved(pruner: BasePruner, seed: int) -> tuple[int, int]:
    """How many of the better half were pruned, and how many validations were not made."""
    quality, values = _curves(np.random.default_rng(seed), points=24, seeds=3)
    study = optuna.create_study(pruner=pruner)
    lost = saved = 0
    for point, curve in enumerate(values):
        reached: dict[int, float] = {}
        pruned = False
        for step, value in curve.items():
            reached[step] = value
            if pruner.prune(study, _running(reached, point)):
                pruned = True
                break
        lost += pruned and bool(quality[point] < np.median(quality))
        saved += len(curve) - len(reached)
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=None if pruned else 1.0,
                params={"p": point},
                distributions=SPACE,
                intermediate_values=reached,
            )
        )
    return lost, saved


def test_fewer_good_points_are_lost_than_by_optunas_median() -> None:
    ours = np.array([_lost_and_saved(_pruner(), seed) for seed in range(8)]).sum(axis=0)
    # the same warm-up, in its own terms
    theirs = np.array(
        [_lost_and_saved(MedianPruner(n_startup_trials=4, n_warmup_steps=25), seed) for seed in range(8)]
    ).sum(axis=0)
    print(f"of 96 good points lost: paired {ours[0]}, Optuna's median {theirs[0]}; saved {ours[1]}, {theirs[1]}")
    assert ours[0] < theirs[0]


def test_the_file_chooses(planned: Callable[..., Plan]) -> None:
    assert isinstance(build_pruner(planned()), NopPruner)
    pruner = build_pruner(planned(pruner="median", pruning={"startup_points": 2}, baseline={"method": "dense"}))
    assert isinstance(pruner, PairedMedianPruner)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pruning": {"startup_points": 0}}, "pruning.startup_points is 0: give a whole number from 1"),
        ({"pruning": {"min_fraction": 2}}, "pruning.min_fraction is 2: give a share of a run, 0 to 1"),
        ({"pruning": {"steps": 2}}, "has 'steps', which is no field"),
        ({"baseline": {"method": "sparse"}}, "baseline: .* is no choice of"),
        ({"objective": "speed"}, "objective is 'speed': val_perplexity"),
        ({"objective": []}, "objective: give at least one figure, each once"),
        ({"objective": ["val_loss", "val_loss"]}, "each once"),
        ({"objective": ["val_loss", "seconds"], "pruner": "median"}, "with 2 objectives"),
        ({"objective": "seconds", "pruner": "median"}, "it judges by validations"),
    ],
)
def test_impossible_settings_are_refused(planned: Callable[..., Plan], changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        planned(**changes)
