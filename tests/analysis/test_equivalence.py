"""Two one-sided tests against scipy's, against cases by hand, and the words for their outcome."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from elas_lightning.analysis.equivalence import equivalence, pair, sentence_of, verdict
from elas_lightning.analysis.statistics import holm


def _sides(ratios):
    base = {seed: 100.0 + 3 * seed for seed in range(len(ratios))}
    return {seed: base[seed] * ratio for seed, ratio in enumerate(ratios)}, base


def test_p_is_the_larger_of_scipys_two_one_sided_tests():
    rng = np.random.default_rng(5)
    for _ in range(20):
        logs = rng.normal(0.005, 0.01, 4)
        found = equivalence(*_sides(np.exp(logs)), margin=0.02)
        bound = math.log(1.02)
        lower = stats.ttest_1samp(logs, -bound, alternative="greater").pvalue
        upper = stats.ttest_1samp(logs, bound, alternative="less").pvalue
        assert found.p == pytest.approx(max(lower, upper), rel=1e-9)
        low, high = stats.t.interval(0.90, 3, loc=logs.mean(), scale=stats.sem(logs))
        assert (found.low, found.high) == pytest.approx((100 * math.expm1(low), 100 * math.expm1(high)))
        # the interval and the test are two ways to say one thing
        assert (found.p < 0.05) == (low > -bound and high < bound)


def test_equal_means_with_a_large_spread_are_not_equivalent():
    difference, found = pair(*_sides([0.95, 1.05, 1.0]))
    assert not difference.found
    assert found.p > 0.05
    assert verdict(found, difference, found.p) == "not shown"
    assert "it is not shown that a and b are equivalent" in sentence_of(found, found.p, "a", "b")


def test_a_small_real_difference_is_both_found_and_equivalent():
    difference, found = pair(*_sides([1.0050, 1.0052, 1.0051]))
    assert difference.found
    assert verdict(found, difference, found.p) == "yes, within 2 %"
    assert "are equivalent within 2 % of perplexity" in sentence_of(found, found.p, "a", "b")


@pytest.mark.parametrize("ratio", [1.05, 0.95])
def test_a_large_difference_is_said_to_be_one(ratio):
    difference, found = pair(*_sides([ratio, ratio * 1.001, ratio * 0.999]))
    assert verdict(found, difference, found.p) == "no: differs by more than 2 %"


def test_the_order_of_the_sides_does_not_matter():
    a, b = _sides([1.012, 1.018, 1.001])
    assert equivalence(a, b).p == pytest.approx(equivalence(b, a).p)


def test_three_ordinary_seeds_can_show_it_and_one_cannot():
    assert equivalence(*_sides([1.0, 1.004, 0.997])).p < 0.05
    one = equivalence({0: 100.0}, {0: 100.0})
    assert (one.p, one.low, one.high, one.n) == (None, None, None, 1)
    assert verdict(one, None, None) == "one seed: no test"
    assert "cannot be tested with 1 shared seed" in sentence_of(one, None, "a", "b")
    assert verdict(equivalence({0: 1.0}, {1: 1.0}), None, None) == "not comparable"


def test_a_divergence_forbids_the_verdict():
    difference, found = pair(*_sides([1.0, 1.001]), lost=1)
    assert found.p < 0.05
    assert verdict(found, difference, found.p) == "no: 1 run diverged"
    assert "cannot be called equivalent, since 1 run of theirs diverged" in sentence_of(found, found.p, "a", "b")


def test_without_any_spread_the_place_decides():
    assert equivalence({0: 2.0, 1: 2.0}, {0: 2.0, 1: 2.0}).p == 0.0
    assert equivalence({0: 3.0, 1: 3.0}, {0: 2.0, 1: 2.0}).p == 1.0


@pytest.mark.parametrize(("a", "margin"), [({0: -1.0, 1: 1.0}, 0.02), ({0: 1.0, 1: 1.0}, 0.0)])
def test_what_has_no_ratio_is_refused(a, margin):
    with pytest.raises(ValueError, match="positive"):
        equivalence(a, {0: 1.0, 1: 1.0}, margin)


def test_false_claims_of_equivalence_stay_below_five_per_cent():
    rng = np.random.default_rng(0)
    claims = corrected = 0
    for _ in range(800):
        # a true difference exactly at the margin: a claim of equivalence is false
        tests = [equivalence(*_sides(1.02 * np.exp(rng.normal(0, 0.01, 3)))).p for _ in range(3)]
        claims += tests[0] < 0.05
        corrected += min(holm(tests)) < 0.05
    assert claims / 800 <= 0.05 + 0.02
    assert corrected / 800 <= 0.05 + 0.02


def test_what_lies_beyond_the_margin_is_not_put_down_to_few_seeds():
    _, found = pair(*_sides([1.05, 1.051, 1.049]))
    assert sentence_of(found, found.p, "a", "b").endswith("they differ by more than that")
    _, wide = pair(*_sides([1.05, 0.99, 1.0]))
    assert sentence_of(wide, wide.p, "a", "b").endswith("too few seeds, or a real difference")


def test_a_corrected_p_is_said_to_be_one():
    _, found = pair(*_sides([1.012, 1.008, 1.004]))
    assert "by two one-sided tests)" in sentence_of(found, found.p, "a", "b")
    said = sentence_of(found, 3 * found.p, "a", "b")
    assert f"p = {3 * found.p:.3f} by two one-sided tests, corrected (Holm))" in said
