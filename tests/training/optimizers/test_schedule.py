"""The shape of the learning rate over a run."""

import itertools

import pytest

from elas_lightning.training.optimizers import learning_rate_factor


def _factors(total: int = 100, warmup: int = 10, ratio: float = 0.1, **restarts: int) -> list[float]:
    return [
        learning_rate_factor(step, total_steps=total, warmup_steps=warmup, min_lr_ratio=ratio, **restarts)
        for step in range(total + 5)
    ]


def test_schedule_rises_to_the_peak_then_falls_to_the_minimum_and_stays() -> None:
    factors = _factors()
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(a < b for a, b in itertools.pairwise(factors[:10]))
    assert all(a > b for a, b in itertools.pairwise(factors[10:100]))
    assert factors[55] == pytest.approx(0.55)  # half-way down the cosine, half-way between 1 and the minimum
    assert factors[100:] == [pytest.approx(0.1)] * 5


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    assert _factors(warmup=0)[0] == 1.0


def test_a_restart_climbs_back_to_the_cosine_in_a_few_steps() -> None:
    plain, jagged = _factors(), _factors(restart_every=30, restart_warmup_steps=4)
    ratios = [b / a for a, b in zip(plain, jagged, strict=True)]
    ramp = [0.25, 0.5, 0.75]
    expected = [1.0] * 30 + 2 * (ramp + [1.0] * 27) + ramp + [1.0] * 12
    assert ratios == pytest.approx(expected)


def test_a_restart_inside_the_first_warmup_climbs_back_to_the_warmup() -> None:
    factors = _factors(warmup=20, restart_every=10, restart_warmup_steps=2)
    assert factors[9:12] == pytest.approx([10 / 20, 0.5 * 11 / 20, 12 / 20])


def test_a_restart_without_a_warmup_of_its_own_leaves_the_cosine_alone() -> None:
    assert _factors(restart_every=30, restart_warmup_steps=0) == _factors()
