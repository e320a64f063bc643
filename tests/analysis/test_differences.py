"""The figure of differences: pairs by seed, each where its name says, twins above."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import METHODS, RANKS, rank_sweep, write_sweep

from elas_lightning.analysis.load import load_sweep
from elas_lightning.analysis.plots import KINDS


def draw(folder, **options):
    figure, caption = KINDS["differences"](load_sweep(folder), {"kind": "differences", **options})
    (ax,) = figure.axes
    return figure, ax, caption


def names(ax):
    return [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]


def drawn(ax):
    """What each group of points shows: the name of the row, value and interval."""
    found = []
    for line, _, (bars,) in ax.containers:
        rows = [names(ax)[round(y)] for y in line.get_ydata()]
        ends = [(segment[0, 0], segment[1, 0]) for segment in bars.get_segments()]
        found.append(list(zip(rows, line.get_xdata(), ends, strict=True)))
    return found


def test_one_pair_has_a_row_for_each_place(rank_ablation):
    figure, ax, caption = draw(rank_ablation, x="method")
    assert names(ax) == ["rank 4", "rank 8", "rank 16", "rank 32"]
    assert ax.get_xlabel().replace("\n", " ") == "Difference in validation perplexity (%), elas against lowrank"
    trials = pd.read_csv(rank_ablation / "trials.csv").set_index(["rank", "method", "seed"]).sort_index()["val_loss"]
    (rows,) = drawn(ax)
    for (_, value, ends), rank in zip(rows, (4, 8, 16, 32), strict=True):
        apart = trials[rank, "elas"] - trials[rank, "lowrank"]
        half = stats.t.ppf(0.975, 2) * apart.std() / 3**0.5
        assert value == pytest.approx(100 * math.expm1(apart.mean()))
        assert ends == pytest.approx([100 * math.expm1(apart.mean() + side * half) for side in (-1, 1)])
    # every seed's own difference is a dot
    (dots,) = [line for line in ax.lines if len(line.get_xdata()) == 12]
    apart = trials[:, "elas"] - trials[:, "lowrank"]
    assert sorted(dots.get_xdata()) == pytest.approx(sorted(100 * np.expm1(apart)))
    assert "all 4 intervals leave zero out" in caption
    assert "room" not in caption
    assert not figure.legends


def test_several_pairs_have_a_colour_for_each_place(rank_ablation):
    figure, ax, _ = draw(rank_ablation, x="rank")
    assert names(ax) == ["rank 8", "rank 16", "rank 32"]
    assert "against rank 4" in ax.get_xlabel().replace("\n", " ")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["method lowrank", "method elas"]
    for group in drawn(ax):
        assert [row for row, *_ in group] == ["rank 8", "rank 16", "rank 32"]
        assert [value for _, value, _ in group] == pytest.approx([-9.5, -18.1, -25.9], abs=0.6)
    _, ax, _ = draw(rank_ablation, x="rank", baseline=32)
    assert names(ax) == ["rank 4", "rank 8", "rank 16"]
    assert all(value > 0 for group in drawn(ax) for _, value, _ in group)


def test_more_places_than_colours_have_a_row_each(tmp_path):
    many = {"kind": "choices", "values": [*range(4, 12)], "label": "rank"}
    search = {"method": {**METHODS, "values": ["a", "b", "c"]}, "rank": many}
    figure, ax, _ = draw(write_sweep(tmp_path / "many", search, []), x="method")
    assert len(names(ax)) == 16
    assert names(ax)[:2] == ["b, rank 4", "c, rank 4"]
    assert not figure.legends


def test_twins_have_a_panel_and_a_scale_of_their_own(twinned):
    figure, caption = KINDS["differences"](load_sweep(twinned), {"kind": "differences", "x": "pattern"})
    above, below = figure.axes
    assert names(above) == ["tied against free", "tied less against dense"]
    assert names(below) == ["free", "tied"]
    for ax, expected in ((above, [1.0, -1.0]), (below, [2.0, 3.05])):
        for group in drawn(ax):
            assert [value for _, value, _ in group] == pytest.approx(expected, abs=0.2)
    assert max(map(abs, above.get_xlim())) < 2 < below.get_xlim()[1]
    assert "against" not in above.get_xlabel()
    assert below.get_xlabel().replace("\n", " ").endswith("against dense")
    assert "in the upper part each choice is beside the twin" in caption
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["activation relu2", "activation swiglu"]


def test_twins_alone_have_one_panel(twinned):
    results = load_sweep(twinned)
    results.summary["twins"] = {"tied": "free"}
    only = replace(results, trials=results.trials[results.trials["pattern"].isin(["tied", "free"])])
    figure, caption = KINDS["differences"](only, {"kind": "differences", "x": "pattern"})
    (ax,) = figure.axes
    assert names(ax) == ["activation relu2", "activation swiglu"]
    assert "upper part" not in caption
    # and a parameter without twins
    _, ax, caption = draw(twinned, x="activation")
    assert "upper part" not in caption
    assert "against relu2" in ax.get_xlabel().replace("\n", " ")


def test_one_that_is_far_away_leaves_the_others_to_be_seen(tmp_path):
    def loss(point, seed):
        far = 0.3 * seed if point["method"] == "e" else 0.0
        return 5 + 0.0005 * "abcde".index(point["method"]) * (-1) ** seed + far

    search = {"method": {**METHODS, "values": list("abcde")}}
    _, ax, caption = draw(write_sweep(tmp_path / "far", search, [], loss=loss), x="method")
    assert ax.get_xscale() == "symlog"
    assert "beyond 1 % to each side the axis is logarithmic" in caption
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "10", "100", "\u22121", "\u221210"]
    low, high = ax.get_xlim()
    for _, _, (left, right) in drawn(ax)[0]:
        assert low < left < right < high


def test_what_intervals_with_zero_leave_room_for_is_said(tmp_path):
    def loss(point, seed):
        return 5 + {"a": 0.0, "b": 0.001 * (-1) ** seed, "c": 0.03 + 0.001 * seed}[point["method"]]

    search = {"method": {**METHODS, "values": ["a", "b", "c"]}}
    _, ax, caption = draw(write_sweep(tmp_path / "three", search, [], loss=loss), x="method")
    (unsure, sure), *_ = drawn(ax)
    assert unsure[2][0] < 0 < sure[2][0]
    assert "1 of 2 intervals leaves zero out" in caption
    assert f"the others leave room for up to {max(map(abs, unsure[2])):.2g} %" in caption
    folder = write_sweep(tmp_path / "two", {"method": {**METHODS, "values": ["a", "b"]}}, [], loss=loss)
    _, ax, caption = draw(folder, x="method")
    assert names(ax) == ["b"]
    assert "the interval includes zero; that leaves room for up to" in caption


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    _, ax, caption = draw(rank_sweep(tmp_path / "one", seeds=[1]), x="method")
    assert caption == "Each pair shares one seed, too few for intervals."
    assert all(low == high for group in drawn(ax) for _, _, (low, high) in group)


def test_losses_differ_in_nats(tmp_path):
    folder = write_sweep(tmp_path / "loss", {"rank": RANKS}, [])
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text.replace('"objective": "val_perplexity"', '"objective": "val_loss"'))
    _, ax, _ = draw(folder, x="rank")
    assert "Difference in validation loss (nats), against rank 4" in ax.get_xlabel().replace("\n", " ")
    assert [value for _, value, _ in drawn(ax)[0]] == pytest.approx([-0.1, -0.2, -0.3], abs=0.01)
