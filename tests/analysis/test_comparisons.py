"""What a sweep compares: its contrasts, what differences are drawn of, twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic import METHODS, RANKS, rank_sweep, write_sweep

from elas_lightning.analysis.comparisons import comparisons, comparisons_of, twin_comparisons
from elas_lightning.analysis.load import load_sweep


def test_comparisons_find_the_true_effect(rank_ablation):
    found = comparisons(load_sweep(rank_ablation))
    assert [one[:3] for one in found] == [(f"rank {rank}", "elas", "lowrank") for rank in (4, 8, 16, 32)]
    for *_, difference, by_seed in found:
        # the mean of log-ratios, which by seed are in per cent
        assert np.mean([math.log1p(value / 100) for value in by_seed.values()]) == pytest.approx(
            math.log1p(difference.value / 100)
        )
        assert set(by_seed) == {1, 2, 3}
        assert difference.value == pytest.approx(1.0, abs=0.25)  # the generator adds 0.01 nats
        assert difference.low < 1.005 < difference.high


def test_heatmap_and_bars_axes_are_contrasts_too(tmp_path):
    search = {
        "activation": {"kind": "choices", "values": ["swiglu", "relu2"], "label": "activation"},
        "sparsity": {"kind": "choices", "values": ["dense", "2:4"], "label": "sparsity"},
    }
    plots = [{"kind": "bars", "x": "activation", "group": "sparsity"}]
    folder = write_sweep(tmp_path / "two", search, plots, loss=lambda p, s: 5.0 + 0.001 * s)
    sides = [one[1:3] for one in comparisons(load_sweep(folder))]
    assert sides == [("2:4", "dense")] * 2 + [("relu2", "swiglu")] * 2


def test_twins_are_compared_at_every_combination_of_the_others(twinned):
    results = load_sweep(twinned)
    found = twin_comparisons(results)
    assert [one[1:3] for one in found] == [("tied", "free"), ("tied less", "dense")] * 2
    for one in found:
        assert one.where in ("activation relu2", "activation swiglu")
        effect = {"tied": 0.01, "tied less": -0.01}[one.level]
        assert one.difference.value == pytest.approx(100 * math.expm1(effect), abs=0.15)
    # what a choice is held against twice, as its twin and as the first in the list, is tested once
    assert [one[1:3] for one in comparisons(results)] == [("free", "dense"), ("tied", "dense")] * 2
    # an other parameter's choice of the same name has no twin
    assert comparisons_of(results, "activation")[0][1:3] == ("swiglu", "relu2")


def test_a_twin_that_has_not_run_is_left_out(tmp_path):
    twins = {"elas": "lowrank"}
    folder = write_sweep(tmp_path / "some", {"method": METHODS}, [], loss=lambda p, s: 5.0, stop_after=3, twins=twins)
    assert twin_comparisons(load_sweep(folder)) == []


def test_what_differences_are_drawn_of_is_compared_numbers_too(tmp_path):
    for baseline, others in (({}, (8, 16, 32)), ({"baseline": 8}, (4, 16, 32))):
        plots = [{"kind": "differences", "x": "rank", **baseline}]
        folder = write_sweep(tmp_path / f"ranks{len(baseline)}", {"rank": RANKS}, plots)
        against = f"rank {baseline.get('baseline', 4)}"
        assert [one[1:3] for one in comparisons(load_sweep(folder))] == [(f"rank {rank}", against) for rank in others]
    named = [{"kind": "differences", "x": "method"}, {"kind": "bars", "x": "method", "baseline": "elas"}]
    folder = write_sweep(tmp_path / "methods", {"method": METHODS}, named)
    assert [one[1:3] for one in comparisons(load_sweep(folder))] == [("lowrank", "elas")]


def test_seeds_that_one_side_lost_are_in_no_difference(tmp_path):
    results = load_sweep(rank_sweep(tmp_path / "lost", states={0: "diverged", 1: "failed", 4: "diverged"}))
    first = next(one for one in comparisons(results) if one.where == "rank 4")
    assert set(first.by_seed) == {3}
    assert first.difference.n == 1
    assert first.difference.value == pytest.approx(first.by_seed[3])
