"""What mattered in a search: the parameter that decides, told from those that do not."""

import random

import optuna
import pytest

from elas_lightning.sweep.space import importances

_RANGES: dict[str, optuna.distributions.BaseDistribution] = {
    name: optuna.distributions.FloatDistribution(0, 1) for name in ("decides", "little", "nothing")
}


def _searched(points: int, seed: int) -> optuna.Study:
    draw, study = random.Random(seed), optuna.create_study()
    for _ in range(points):
        point = {name: draw.random() for name in _RANGES}
        value = (point["decides"] - 0.3) ** 2 + 0.02 * point["little"]
        study.add_trial(optuna.trial.create_trial(params=point, distributions=_RANGES, value=value))
    return study


def test_of_twenty_points_the_parameter_that_decides_is_told_from_the_others() -> None:
    first = 0
    for seed in range(40):
        shares = importances(_searched(20, seed), "minimize")
        assert shares is not None
        assert sum(shares.values()) == pytest.approx(1)
        first += max(shares, key=shares.__getitem__) == "decides"
    assert first >= 36  # with Optuna's best tenth, two points, 29


def test_nine_points_say_nothing() -> None:
    assert importances(_searched(9, 0), "minimize") is None
