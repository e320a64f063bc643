"""Known exponents are found again, their intervals hold them, and data that decide nothing are refused."""

from __future__ import annotations

import numpy as np
import pytest

from elas_lightning.analysis.extrapolation import REACH, Undetermined, factor, fit, power_law

SIZES = np.array([1e6, 3e6, 1e7, 3e7, 1e8])


def _curve(x, offset=1.7, scale=400.0, exponent=0.34):
    return offset + scale * np.asarray(x, float) ** -exponent


@pytest.mark.parametrize("exponent", [0.1, 0.34, 0.8])
@pytest.mark.parametrize("count", [3, 5])
def test_a_known_law_is_recovered(exponent, count):
    law = power_law(SIZES[:count], _curve(SIZES[:count], scale=2.0 * 1e6**exponent, exponent=exponent))
    assert law.exponent == pytest.approx(exponent, rel=1e-3)
    assert law.offset == pytest.approx(1.7, rel=1e-3)
    assert float(law.at(1e9)) == pytest.approx(
        float(_curve(1e9, scale=2.0 * 1e6**exponent, exponent=exponent)), rel=1e-3
    )


def _noisy(seed, seeds=5, noise=0.003):
    generator = np.random.default_rng(seed)
    return {float(x): dict(enumerate(_curve(x) + generator.normal(0, noise, seeds))) for x in SIZES}


def test_the_interval_holds_the_true_exponent_mostly():
    hits = total = 0
    for seed in range(8):
        try:
            found = fit(_noisy(seed))
        except Undetermined:
            continue
        total += 1
        hits += found.exponent[0] <= 0.34 <= found.exponent[1]
    assert total >= 7
    assert hits / total >= 0.7  # percentile intervals of five seeds are known to be narrow


def test_a_loss_is_quoted_within_reach_only():
    found = fit(_noisy(1))
    mean, low, high = found.at(1e9)
    assert low <= mean <= high
    assert (low, high) == pytest.approx(np.quantile([law.at(1e9) for law in found.resamples], [0.025, 0.975]))
    assert found.exponent == pytest.approx(np.quantile([law.exponent for law in found.resamples], [0.025, 0.975]))
    assert mean == pytest.approx(float(_curve(1e9)), abs=0.05)
    assert found.reach == REACH * 1e8
    assert found.at(3e9) is None
    assert found.misfit < 0.01
    assert found.seeds == 5


def test_three_seeds_are_resampled_in_all_27_ways_and_the_fit_repeats():
    data = {
        x: {seed: value for seed, value in sides.items() if seed < 3} for x, sides in _noisy(2, noise=0.0005).items()
    }
    assert len(fit(data).resamples) == 27
    assert fit(data) == fit(data)


def test_three_sizes_have_no_misfit_to_speak_of():
    data = {x: sides for x, sides in _noisy(3, noise=0.0005).items() if x <= 1e7}
    assert fit(data).misfit is None


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        ([4.0, 3.5], "three constants need 3 sizes or more, and there are 2"),
        ([4.0, 3.5, 3.0], "a straight line in the logarithm"),
        ([4.0, 3.8, 3.0], "a straight line in the logarithm"),
        ([3.0, 3.5, 4.0], "does not fall"),
        ([3.0, 3.0, 3.0], "does not fall"),
        ([4.0, 3.0, 3.0], "between the smallest sizes"),
    ],
)
def test_data_that_decide_nothing_are_refused_with_the_reason(y, reason):
    x = [1e6, 1e7, 1e8][: len(y)]
    with pytest.raises(Undetermined, match=reason):
        power_law(x, y)
    with pytest.raises(Undetermined, match=reason):
        fit({size: dict.fromkeys(range(3), loss) for size, loss in zip(x, y, strict=True)})


def test_noise_larger_than_the_curvature_is_refused():
    generator = np.random.default_rng(0)
    # nearly straight: means may bend by luck, resamples of the seeds do not agree on it
    data = {x: dict(enumerate(4 - 0.1 * np.log(x / 1e6) + generator.normal(0, 0.05, 3))) for x in (1e6, 3e6, 1e7, 3e7)}
    with pytest.raises(Undetermined):
        fit(data)


@pytest.mark.parametrize("data", [{}, {x: {0: y, 1: y} for x, y in ((1e6, 4.0), (1e7, 3.0), (1e8, 2.5))}])
def test_without_sizes_or_seeds_there_is_no_fit(data):
    with pytest.raises(Undetermined, match=r"sizes or more|share 2 finished seeds"):
        fit(data)


def test_factors_are_said_roughly():
    assert [factor(1e6, 3e9), factor(1e6, 7.04e9), factor(1e9, 3e9)] == [
        "about 3,000 times",
        "about 7,000 times",
        "3.0 times",
    ]


@pytest.mark.parametrize(("seeds", "least", "most"), [(3, 0.55, 0.85), (5, 0.75, 0.95)])
def test_intervals_of_few_seeds_are_as_narrow_as_the_document_says(seeds, least, most):
    generator = np.random.default_rng(seeds)
    held = []
    for _ in range(40):
        data = {
            x: {s: 2 + 1.5 * (x / 1e6) ** -0.25 + generator.normal() * 0.004 for s in range(seeds)}
            for x in (1e6, 4e6, 16e6, 64e6, 256e6)
        }
        _, low, high = fit(data).at(1e9)
        held.append(low <= 2 + 1.5 * 1000**-0.25 <= high)
    assert least <= np.mean(held) <= most
