"""What the sentences claim, and what they must not."""

from __future__ import annotations

import pytest

from elas_lightning.analysis.statistics import Difference, Estimate, paired_difference
from elas_lightning.analysis.wording import (
    compare,
    compare_many,
    decimals_of,
    number,
    plus_minus,
    room,
    seeds_phrase,
    sentence,
    signed,
)


def test_a_found_difference_without_a_width_is_not_rounded_to_nothing():
    assert decimals_of(Difference(1e-5, 1e-5, 1e-5, 0.0, 2, "%")) == 5
    assert decimals_of(Difference(12.5, 12.5, 12.5, 0.0, 2, "%")) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (148.23, "148"), (24.804, "24.8"), (0.00103, "0.00103"), (1234567.0, "1234567"), (-2.5, "−2.50")],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(148.234, 3.14, 3), "148.2 ± 3.1"),
        (Estimate(212.3, 43.0, 2), "212 ± 43"),
        (Estimate(2.12341, 0.0078, 3), "2.1234 ± 0.0078"),
        (Estimate(150.0, None, 1), "150.0"),
        (Estimate(6.0, 1e-15, 3), "6.000 ± 0"),
    ],
)
def test_a_mean_has_the_decimals_its_interval_justifies(found, text):
    assert plus_minus(found) == text


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([1], "one seed, so no interval"),
        ([3, 3], "mean ± 95 % interval over 3 seeds"),
        ([3, 2], "mean ± 95 % interval over 2 to 3 seeds"),
        ([1, 3], "mean ± 95 % interval over 3 seeds; one seed has none"),
    ],
)
def test_what_is_said_of_seeds_is_true_of_each_value(counts, text):
    assert seeds_phrase(*counts) == text


def test_zero_has_no_sign_after_rounding():
    assert [signed(-0.001, 1), signed(0.04, 2), signed(-1.25, 1)] == ["0.0", "+0.04", "−1.2"]


def test_a_found_difference_names_its_side_and_interval():
    text = compare(Difference(1.2, 0.3, 2.1, 0.02, 3, "%"), "elas", "lowrank", " at rank 32")
    assert text == "elas is 1.20 % (95 % interval 0.30 to 2.10) above lowrank at rank 32, paired over 3 seeds"
    text = compare(Difference(-1.2, -2.1, -0.3, 0.02, 3, "%"), "elas", "lowrank")
    assert "1.20 % (95 % interval 0.30 to 2.10) below lowrank" in text


def test_an_interval_with_zero_is_not_called_equality():
    text = compare(Difference(0.4, -0.8, 1.6, 0.3, 3, "%"), "elas", "lowrank")
    assert text.startswith("no difference was found between elas and lowrank (+0.4 %")
    assert "does not show that they are equal" in text
    assert "up to 1.6 %" in text


def test_identical_runs_are_called_identical():
    assert compare(paired_difference({1: 3.0, 2: 4.0}, {1: 3.0, 2: 4.0}), "a", "b") == (
        "a and b are identical in each of 2 seeds"
    )


def test_one_seed_and_no_shared_seed_are_said():
    assert "too few for an interval" in compare(paired_difference({1: 3.0}, {1: 2.0}), "a", "b")
    assert "cannot be compared" in compare(None, "a", "b", " at rank 4")


def test_many_comparisons_keep_apart_what_was_found_and_what_was_not():
    found = {
        "relu2": Difference(2.0, 1.0, 3.0, 0.01, 3, "%"),
        "gelu": Difference(4.0, 3.0, 5.0, 0.01, 3, "%"),
        "silu": Difference(0.1, -1.0, 1.2, 0.8, 3, "%"),
    }
    text = compare_many(found, "2:4", "dense")
    assert "2:4 is above dense with relu2 and gelu by 2.0 to 4.0 %" in text
    assert "no difference was found between 2:4 and dense with silu" in text


def test_sentence_skips_empty_clauses():
    assert sentence(["a", "", "b"]) == "A; b."


def test_a_place_with_one_seed_is_not_said_to_have_been_tested():
    found = {"relu2": Difference(2.0, 1.0, 3.0, 0.01, 3, "%"), "gelu": Difference(4.0, None, None, None, 1, "%")}
    text = compare_many(found, "2:4", "dense")
    assert "no difference was found" not in text
    assert "2:4 and dense share one seed with gelu, too few for an interval" in text


def test_what_is_tiny_is_not_rounded_to_nothing():
    assert plus_minus(Estimate(1.0000012, 2.5e-7, 3)) == "1.00000120 ± 0.00000025"
    text = compare(Difference(0.0004, 0.0001, 0.0007, 0.01, 3, "absolute"), "a", "b")
    assert text.startswith("a is 0.0004")
    assert "interval 0.0001" in text
    assert compare(Difference(-9.154, -9.1541, -9.1539, 0.0, 3, "%"), "a", "b").startswith("a is 9.154 %")


@pytest.mark.parametrize(("percent", "text"), [(0.0312, "0.03 % above"), (2.46, "2.5 % above")])
def test_a_difference_in_one_seed_is_not_rounded_to_nothing(percent, text):
    assert f"a is {text} b in the one seed" in compare(Difference(percent, None, None, None, 1, "%"), "a", "b")


def test_room_is_that_of_the_narrowest_and_of_the_widest_interval():
    narrow = Difference(0.1, -0.02, 0.22, 0.1, 3, "%")
    wide = Difference(-0.5, -2.04, 1.1, 0.1, 3, "%")
    assert room([narrow]) == "up to 0.22 %"
    assert room([narrow, wide]) == "up to 0.22 % where the interval is narrowest and 2.0 % where it is widest"
    assert room([Difference(0.001, -0.002, 0.004, 0.1, 3, "absolute")]) == "up to 0.0040 nats"
