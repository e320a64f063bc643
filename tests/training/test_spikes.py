"""What counts as a spike of the loss."""

import random

import pytest

from elas_lightning.training.spikes import is_spike


def spikes(losses: list[float]) -> list[int]:
    return [i for i, loss in enumerate(losses) if is_spike(loss, losses[:i])]


def falling(steps: int, seed: int) -> list[float]:
    noise = random.Random(seed)
    return [3 + 4 * 0.97**i + noise.gauss(0, 0.05) for i in range(steps)]


def test_a_falling_noisy_curve_has_none() -> None:
    assert [spikes(falling(200, seed)) for seed in range(5)] == [[]] * 5


def test_a_jump_is_one_and_does_not_hide_the_next() -> None:
    losses = falling(200, 0)
    losses[100] += 2.0
    losses[105] += 2.0
    assert spikes(losses) == [100, 105]


def test_a_jump_down_is_none() -> None:
    assert not is_spike(1.0, [3.0] * 20)


@pytest.mark.parametrize(("rise", "spike"), [(0.055, False), (0.065, True)])
def test_a_quiet_stretch_is_given_a_hundredth(rise: float, spike: bool) -> None:
    assert is_spike(3 + rise, [3.0] * 20) is spike


def test_too_little_before_it_says_nothing() -> None:
    assert not is_spike(100.0, [3.0] * 4)
    assert is_spike(100.0, [3.0] * 5)
