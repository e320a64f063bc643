"""The statistics against scipy and against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from elas_lightning.analysis.statistics import estimate, holm, paired_difference, unpaired_difference


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_interval_is_scipys_t_interval(n):
    values = np.random.default_rng(n).normal(150, 4, n)
    found = estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.mean, found.high) == pytest.approx((low, values.mean(), high), rel=1e-12)
    assert found.n == n


def test_interval_covers_the_true_mean_95_times_in_100():
    draws = np.random.default_rng(0).normal(0.0, 1.0, (4000, 3))
    covered = np.mean([(e := estimate(draw)).low <= 0.0 <= e.high for draw in draws])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_one_seed_has_no_interval_and_none_has_no_estimate():
    assert estimate([150.0]).half_width is None
    assert estimate([]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_value_is_refused_rather_than_averaged(bad):
    with pytest.raises(ValueError, match="leave diverged runs out"):
        estimate([150.0, bad])


def test_paired_difference_is_the_paired_t_test_on_logs():
    rng = np.random.default_rng(3)
    a, b = np.exp(rng.normal(5.02, 0.02, 5)), np.exp(rng.normal(5.0, 0.02, 5))
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    test = stats.ttest_rel(np.log(a), np.log(b))
    ends = [100 * math.expm1(end) for end in test.confidence_interval(0.95)]
    assert found.p == pytest.approx(test.pvalue, rel=1e-10)
    assert (found.low, found.high) == pytest.approx(ends, rel=1e-10)
    assert found.value == pytest.approx(100 * math.expm1(np.mean(np.log(a) - np.log(b))))


def test_losses_are_subtracted_as_they_are():
    found = paired_difference({1: 5.0, 2: 5.2, 3: 5.1}, {1: 4.9, 2: 5.0, 3: 5.0}, "absolute")
    test = stats.ttest_rel([5.0, 5.2, 5.1], [4.9, 5.0, 5.0])
    assert found.value == pytest.approx(0.4 / 3)
    assert found.p == pytest.approx(test.pvalue)


def test_pairing_finds_what_the_seeds_spread_hides():
    base = {seed: 150.0 * math.exp(0.05 * seed) for seed in range(4)}
    worse = {seed: value * (1.01 + 0.0005 * seed) for seed, value in base.items()}
    assert estimate(list(base.values())).high > estimate(list(worse.values())).low
    found = paired_difference(worse, base)
    assert found.found
    assert found.value == pytest.approx(1.075, abs=0.01)


def test_only_shared_seeds_count():
    found = paired_difference({1: 100.0, 2: 101.0, 9: 500.0}, {1: 100.0, 2: 100.0, 3: 1.0})
    assert found.n == 2
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_one_shared_seed_has_neither_interval_nor_p():
    found = paired_difference({1: 101.0}, {1: 100.0})
    assert (found.low, found.high, found.p, found.found) == (None, None, None, False)
    assert found.value == pytest.approx(1.0)


def test_differences_without_spread():
    same = {1: 100.0, 2: 90.0}
    assert paired_difference(same, same).p == 1.0
    assert not paired_difference(same, same).found
    shifted = paired_difference({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}, "absolute")
    assert shifted.p == 0.0


def test_per_cent_needs_positive_values():
    with pytest.raises(ValueError, match="positive"):
        paired_difference({1: 0.0}, {1: 1.0})


def test_unpaired_differences_at_their_edges():
    assert unpaired_difference([], [1.0], "%") is None
    single = unpaired_difference([2.0], [1.0, 1.0], "%")
    assert (single.value, single.low) == (pytest.approx(100.0), None)
    constant = unpaired_difference([2.0, 2.0], [1.0, 1.0], "absolute")
    assert (constant.low, constant.high, constant.p) == (1.0, 1.0, 0.0)


def test_holm_worked_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, then the running maximum.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_ignores_comparisons_without_a_test():
    assert holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]


def test_holm_bounds_false_findings_where_plain_p_does_not():
    rng = np.random.default_rng(1)
    plain = corrected = 0
    for _ in range(1000):
        p = list(rng.uniform(size=6))
        plain += min(p) < 0.05
        corrected += min(holm(p)) < 0.05
    assert corrected / 1000 == pytest.approx(0.05, abs=0.02)
    assert plain / 1000 > 0.2
