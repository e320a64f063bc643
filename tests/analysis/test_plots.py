"""The figures: what is drawn equals what was measured, and what cannot be drawn is said."""

from __future__ import annotations

import json
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.image import imread
from scipy import stats
from synthetic import METHODS, RANKS, rank_sweep, write_sweep

from elas_lightning.analysis import style
from elas_lightning.analysis.load import load_sweep
from elas_lightning.analysis.plots import KINDS, write_plots
from elas_lightning.analysis.plots.base import CannotDraw
from elas_lightning.analysis.style import look
from elas_lightning.errors import UserError

ACTIVATIONS = {"kind": "choices", "values": ["swiglu", "relu2", "a very long name of an activation"], "label": "FFN"}
SPARSITY = {"kind": "choices", "values": ["dense", "2:4"], "label": "sparsity"}
RATES = {"kind": "choices", "values": [0.001, 0.003, 0.01, 0.03], "label": "peak learning rate"}


def draw(folder, kind, **options):
    return KINDS[kind](load_sweep(folder), {"kind": kind, **options})


def texts(ax):
    return [text.get_text() for text in ax.texts]


def tick_names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def flat_loss(point, seed):
    return 5.0 + 0.01 * seed


def test_metric_by_draws_means_intervals_and_seeds(rank_ablation):
    figure, _ = draw(rank_ablation, "metric_by", x="rank", series="method", log_x=True)
    (ax,) = figure.axes
    trials = pd.read_csv(rank_ablation / "trials.csv")
    assert len(ax.containers) == 2
    for container, method in zip(ax.containers, ["lowrank", "elas"], strict=True):
        line, _, (bars,) = container
        groups = trials[trials["method"] == method].groupby("rank")["val_perplexity"]
        assert list(line.get_ydata()) == pytest.approx(list(groups.mean()))
        half = stats.t.ppf(0.975, 2) * groups.std().to_numpy() / np.sqrt(3)
        lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
        assert lengths == pytest.approx(2 * half)
        # Series stand a little to each side of the rank, never as far as half way to the next.
        assert np.log2(np.asarray(line.get_xdata(), dtype=float) / [4, 8, 16, 32]) == pytest.approx(
            np.zeros(4), abs=0.1
        )
    faint = [line for line in ax.lines if line.get_alpha() is not None]
    assert sorted(np.concatenate([line.get_ydata() for line in faint])) == pytest.approx(
        sorted(trials["val_perplexity"])
    )
    assert ax.get_xscale() == "log"
    assert tick_names(ax.xaxis) == ["4", "8", "16", "32"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Rank", "Validation perplexity")
    assert {"lowrank", "elas", "Method"} <= set(texts(ax))


def test_metric_by_caption_states_trend_and_paired_difference(rank_ablation):
    _, caption = draw(rank_ablation, "metric_by", x="rank", series="method", log_x=True)
    trials = pd.read_csv(rank_ablation / "trials.csv")
    means = trials.groupby(["method", "rank"])["val_perplexity"].mean()
    pattern = (
        r"Validation perplexity of elas falls from (\d+) ± \d+ at rank 4 to ([\d.]+) ± [\d.]+ at rank 32 "
        r"\(mean ± 95 % interval over 3 seeds\); elas is ([\d.]+) % \(95 % interval [\d.]+ to [\d.]+\) above "
        r"lowrank at rank 32, paired over 3 seeds\."
    )
    first, last, gap = map(float, re.fullmatch(pattern, caption).groups())
    assert first == pytest.approx(means["elas", 4], abs=0.5)
    assert last == pytest.approx(means["elas", 32], abs=0.05)
    assert gap == pytest.approx(1.0, abs=0.25)


def test_caption_does_not_claim_a_trend_the_seeds_do_not_show(tmp_path):
    folder = write_sweep(tmp_path / "flat", {"rank": RANKS}, [], loss=lambda p, s: 5.0 + 0.02 * ((p["rank"] * s) % 7))
    _, caption = draw(folder, "metric_by", x="rank", filter={})
    assert "falls" not in caption
    assert "rises" not in caption


def test_a_change_smaller_than_the_means_intervals_is_told_by_its_pairs(tmp_path):
    def loss(point, seed):
        return 5.0 + 0.1 * seed - 0.0002 * point["rank"] - 0.00005 * (point["rank"] * seed % 7)

    _, caption = draw(write_sweep(tmp_path / "slight", {"rank": RANKS}, [], loss=loss), "metric_by", x="rank")
    pattern = (
        r"Validation perplexity is [\d.]+ ± [\d.]+ at rank 4 and [\d.]+ ± [\d.]+ at rank 32 "
        r"\(mean ± 95 % interval over 3 seeds\); rank 32 is ([\d.]+) % \(95 % interval [\d.]+ to [\d.]+\) below "
        r"rank 4, paired over 3 seeds\."
    )
    assert float(re.fullmatch(pattern, caption)[1]) == pytest.approx(0.56, abs=0.1)


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    folder = rank_sweep(tmp_path / "single", seeds=[1])
    figure, caption = draw(folder, "metric_by", x="rank", series="method")
    assert "one seed, so no interval" in caption
    assert "±" not in caption
    _, _, (bars,) = figure.axes[0].containers[0]
    assert [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()] == [0.0] * 4


def test_wide_intervals_of_two_seeds_do_not_flatten_the_data(tmp_path):
    # Between these two seeds lie 15 %: with t = 12.7 the interval is longer than the perplexity itself.
    folder = rank_sweep(tmp_path / "two", seeds=[1, 2], loss=lambda p, s: 5.4 - 0.01 * p["rank"] + 0.15 * s)
    figure, caption = draw(folder, "metric_by", x="rank", series="method")
    assert "an interval that reaches the edge of the figure goes on beyond it" in caption
    (ax,) = figure.axes
    values = pd.read_csv(folder / "trials.csv")["val_perplexity"]
    low, high = ax.get_ylim()
    assert low < values.min() < values.max() < high
    assert (values.max() - values.min()) / (high - low) > 0.2


def test_mixed_ranks_and_zeros_stand_evenly(tmp_path):
    ranks = {"kind": "choices", "values": [8, 16, None], "label": "rank"}
    folder = write_sweep(tmp_path / "mixed", {"rank": ranks}, [], loss=flat_loss)
    figure, _ = draw(folder, "metric_by", x="rank", log_x=True)
    assert tick_names(figure.axes[0].xaxis) == ["8", "16", "full rank"]
    warmups = {"kind": "choices", "values": [0, 500, 1000], "label": "warm-up"}
    folder = write_sweep(tmp_path / "zero", {"warmup": warmups}, [], loss=flat_loss)
    figure, _ = draw(folder, "metric_by", x="warmup", log_x=True)
    ax = figure.axes[0]
    assert ax.get_xscale() == "linear"
    assert list(ax.get_xticks()) == [0.0, 1.0, 2.0]


def lr_loss(point, seed):
    best = {"lowrank": 0.01, "elas": 0.03}[point["method"]]
    return 5.0 + 0.1 * np.log(point["lr"] / best) ** 2 + 0.01 * seed


def test_lr_curve_marks_divergence_at_the_top_and_names_edges(tmp_path):
    # run 9..11: lowrank at 0.03, all three seeds
    states = dict.fromkeys(range(9, 12), "diverged")
    folder = write_sweep(tmp_path / "lr", {"method": METHODS, "lr": RATES}, [], loss=lr_loss, states=states)
    figure, caption = draw(folder, "lr_curve", x="lr", series="method")
    (ax,) = figure.axes
    (cross,) = [line for line in ax.lines if line.get_marker() == "x"]
    assert cross.get_ydata() == [1.0]  # the top edge, in axes units
    assert cross.get_xdata()[0] == pytest.approx(0.03, rel=0.3)
    assert to_hex(cross.get_color()) == to_hex(look(0).color)
    assert "3" in texts(ax)
    assert any("× diverged" in text for text in texts(ax))
    assert tick_names(ax.xaxis) == ["0.001", "0.003", "0.01", "0.03"]
    assert "best at peak learning rate 0.01 for lowrank" in caption
    assert "0.03 for elas" in caption
    # 0.01 is lowrank's highest rate with a value, but not the highest that was tried
    assert "for elas that is an end of the tried range" in caption
    assert "of 24 runs shown, 3 diverged: these have no part in the means" in caption


def test_bars_draw_dots_for_perplexity_and_bars_from_zero_for_speed(tmp_path):
    search = {"activation": ACTIVATIONS, "sparsity": SPARSITY}
    folder = write_sweep(tmp_path / "bars", search, [], loss=flat_loss, states={0: "diverged"})
    figure, caption = draw(folder, "bars", x="activation", group="sparsity")
    (ax,) = figure.axes
    trials = pd.read_csv(folder / "trials.csv")
    for container, sparsity in zip(ax.containers, ["dense", "2:4"], strict=True):
        means = trials[trials["sparsity"] == sparsity].groupby("activation", sort=False)["val_perplexity"].mean()
        assert list(container.lines[0].get_xdata()) == pytest.approx(list(means))
    assert not ax.patches
    assert ax.get_xlim()[0] > 0
    assert "diverged" in texts(ax)
    assert "swiglu" in tick_names(ax.yaxis)
    assert ax.get_xlabel() == "Validation perplexity"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "2:4"]
    assert "2:4 and dense" in caption
    figure, _ = draw(folder, "bars", x="activation", group="sparsity", metric="tokens_per_second")
    (ax,) = figure.axes
    assert ax.get_xlim()[0] == 0
    widths = [patch.get_width() for c in ax.containers if isinstance(c, BarContainer) for patch in c]
    assert min(widths) > 20000


def test_curves_are_means_over_seeds_and_diverged_runs_stand_alone(tmp_path):
    folder = rank_sweep(tmp_path / "curves", states={0: "diverged"})
    figure, caption = draw(folder, "curves", series="method", filter={"rank": 4})
    whole, end = figure.axes
    frames = [pd.read_csv(path) for path in sorted(folder.glob("runs/001-seed*/curve.csv"))]
    values = np.mean([frame["val_loss"].dropna() for frame in frames], axis=0)
    (line,) = [line for line in whole.lines if to_hex(line.get_color()) == to_hex(look(1).color)]
    assert line.get_ydata() == pytest.approx(values)
    assert line.get_xdata() == pytest.approx(frames[0]["tokens"].unique())
    assert [text for text in texts(end) if text in ("lowrank", "elas")] == ["lowrank", "elas"]
    assert any(line.get_linestyle() == ":" for line in whole.lines)
    assert "1 diverged run dotted up to a cross" in caption
    assert whole.get_xlim()[0] == 0
    assert end.get_xlim()[0] == pytest.approx(frames[0]["tokens"].max() * 2 / 3)
    assert end.get_xlabel() == "Training tokens"


def test_a_validation_that_overflowed_is_left_out_of_the_curves(rank_ablation):
    path = rank_ablation / "runs/000-seed1/curve.csv"
    curve = pd.read_csv(path)
    validations = curve.index[curve["val_perplexity"].notna()]
    curve.loc[validations[2], "val_perplexity"] = np.inf
    curve.to_csv(path, index=False)
    figure, _ = draw(rank_ablation, "curves", series="rank", value="val_perplexity", filter={"method": "lowrank"})
    first, other = figure.axes[0].lines[:2]
    assert len(first.get_xdata()) == len(other.get_xdata()) - 1


def test_curves_with_a_second_parameter_as_line_style(rank_ablation):
    figure, caption = draw(rank_ablation, "curves", series="rank", style="method", value="train_loss", x="step")
    whole, end = figure.axes
    assert len(whole.lines) == 8
    assert len({to_hex(line.get_color()) for line in whole.lines}) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lowrank", "elas"]
    assert {"4", "8", "16", "32", "Rank"} <= set(texts(end))
    assert caption.startswith("Training loss ends between")
    assert end.get_xlabel() == "Optimizer step"


def test_heatmap_writes_each_mean_and_marks_gaps(tmp_path):
    # 6 points; the second loses all seeds, the last is not run
    states = dict.fromkeys(range(3, 6), "diverged")
    search = {"activation": ACTIVATIONS, "sparsity": SPARSITY}
    folder = write_sweep(tmp_path / "heat", search, [], loss=flat_loss, states=states, stop_after=15)
    figure, caption = draw(folder, "heatmap", x="sparsity", y="activation")
    ax = figure.axes[0]
    mean = pd.read_csv(folder / "trials.csv")["val_perplexity"].dropna().mean()
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    expected = np.array([[mean, np.nan], [mean, mean], [mean, np.nan]])
    np.testing.assert_allclose(shown, expected)
    assert sum(text.startswith(f"{mean:.1f}\n±") for text in texts(ax)) == 4
    assert {"diverged", "not run"} <= set(texts(ax))
    assert "1 pair of values without a run" in caption


@pytest.fixture
def search_sweep(tmp_path):
    """A random search over a learning rate, a rank with None, and a switch; one seed, some runs lost."""
    rng = np.random.default_rng(0)
    points = [
        {"lr": float(10 ** rng.uniform(-4, -1)), "rank": [None, 8, 16][i % 3], "masked": bool(i % 2)} for i in range(14)
    ]
    search = {
        "lr": {"kind": "range", "low": 1e-4, "high": 1e-1, "log": True, "label": "peak learning rate"},
        "rank": {"kind": "choices", "values": [None, 8, 16], "label": "rank"},
        "masked": {"kind": "choices", "values": [True, False], "label": "masked gradient"},
    }
    plots = [{"kind": "parallel"}, {"kind": "importance"}, {"kind": "lr_curve", "x": "lr", "series": "masked"}]
    return write_sweep(
        tmp_path / "search",
        search,
        plots,
        points=points,
        seeds=[0],
        loss=lambda p, s: 5.0 + 0.1 * np.log(p["lr"] / 0.004) ** 2,
        states={2: "pruned", 5: "diverged"},
        importances={"rank": 0.25, "lr": 0.7, "masked": 0.05},
    )


@pytest.mark.parametrize(("x", "per_step"), [("tokens", 2048), ("seconds", 0.075)])
def test_telemetry_over_tokens_or_time_takes_them_from_the_curves(rank_ablation, x, per_step):
    figure, _ = draw(rank_ablation, "telemetry", value="natural_zeros", x=x)
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([per_step * step for step in range(0, 401, 50)])


def test_telemetry_is_of_the_steps_that_all_runs_and_layers_have(rank_ablation):
    """One seed's file ends early, another lacks the last layer at a step in between."""
    options = {"value": "natural_zeros", "filter": {"method": "elas", "rank": 32}}
    whole, said = draw(rank_ablation, "telemetry", **options)
    home = sorted(rank_ablation.glob("runs/007-seed*"))
    early = (home[0] / "telemetry.csv").read_text().splitlines()
    (home[0] / "telemetry.csv").write_text("\n".join(early[:-3]) + "\n")  # three of four layers of the last step
    hole = (home[1] / "telemetry.csv").read_text().splitlines()
    (home[1] / "telemetry.csv").write_text("\n".join(line for line in hole if not line.startswith("200,3,")))
    figure, caption = draw(rank_ablation, "telemetry", **options)
    for line, before in zip(figure.axes[0].lines[:4], whole.axes[0].lines[:4], strict=True):
        assert list(line.get_xdata()) == [0, 50, 100, 150, 250, 300, 350]
        kept = np.isin(before.get_xdata(), line.get_xdata())
        assert line.get_ydata() == pytest.approx(before.get_ydata()[kept])
    assert "at step 350 (mean ± 95 % interval over 3 seeds)" in caption
    assert "at step 400 (mean ± 95 % interval over 3 seeds)" in said


@pytest.mark.parametrize(("kind", "options"), [("bars", {"x": "rank"}), ("heatmap", {"x": "rank", "y": "method"})])
def test_a_comparison_of_what_was_picked_by_its_value_says_so(rank_ablation, kind, options):
    _, caption = draw(rank_ablation, kind, **options)
    count = 4 if kind == "bars" else 8
    assert f"of {count}, which this interval does not allow for" in caption


def test_parallel_draws_every_point_and_marks_the_best(search_sweep):
    figure, caption = draw(search_sweep, "parallel")
    (ax,) = figure.axes
    # two places for each of the three parameters, and one for the metric
    lines = [line for line in ax.lines if len(line.get_xdata()) in (6, 7)]
    assert sum(len(line.get_xdata()) == 7 for line in lines) == 12
    assert sum(len(line.get_xdata()) == 6 for line in lines) == 2
    (best,) = [line for line in lines if line.get_linewidth() == 3.0]
    assert best.get_ydata()[-1] == 0.0
    assert {"full rank", "8", "16", "yes", "no"} <= set(texts(ax))
    trials = pd.read_csv(search_sweep / "trials.csv")
    winner = trials.loc[trials["val_perplexity"].idxmin()]
    assert f"peak learning rate {winner['lr']:.3g}" in caption
    assert "dotted grey lines are 2 points without a finished run" in caption


def _overlap(texts):
    boxes = [text.get_window_extent() for text in texts]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_no_line_of_parallel_goes_slanting_through_a_name(tmp_path):
    placements = ["dense", "FFN hidden (ELAS)", "FFN hidden + input", "FFN hidden + attention input"]
    search = {"rank": RANKS, "placement": {"kind": "choices", "values": placements, "label": "placement"}}
    figure, _ = draw(write_sweep(tmp_path / "joint", search, [], seeds=[1]), "parallel")
    figure.canvas.draw()
    (ax,) = figure.axes
    level_until = ax.lines[-1].get_xdata()[1::2]
    assert len(level_until) == 2
    for text in ax.texts:
        box = text.get_window_extent().transformed(ax.transData.inverted())
        behind = max(x for x in ax.xaxis.get_ticklocs() if x < box.x0)
        assert behind == ax.xaxis.get_ticklocs()[-1] or box.x1 <= min(x for x in level_until if x > behind)
    assert not _overlap(ax.texts)


def test_marks_of_the_metric_differ_where_its_values_hardly_do(tmp_path):
    folder = rank_sweep(tmp_path / "close", loss=lambda p, s: 5.4 + 1e-7 * p["rank"])
    figure, _ = draw(folder, "parallel")
    marks = [text for text in texts(figure.axes[0]) if text.startswith("221.")]
    assert len(set(marks)) == 3


@pytest.mark.parametrize(("low", "high"), [(10.1, 85.0), (3.0, 30.0), (10.0, 1e8), (1e-7, 1.0)])
def test_a_log_axis_has_a_few_numbers_that_stand_apart(low, high):
    with style.house_style():
        figure = style.new_figure()
        ax = figure.add_subplot()
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        style.plain_numbers(ax, "x")
        figure.canvas.draw()
        places = zip(ax.xaxis.get_ticklocs(), ax.xaxis.get_ticklabels(), strict=True)
        shown = [label for place, label in places if low <= place <= high]
        assert 2 <= len([label for label in shown if label.get_text()]) <= 7
        assert not _overlap(shown)


def test_a_heatmap_of_many_long_names_has_room_for_its_numbers(tmp_path):
    methods = {"kind": "choices", "values": [f"a method with a long name, number {i}" for i in range(12)], "label": "m"}
    sizes = {"kind": "choices", "values": [1, 2], "label": "size"}
    folder = write_sweep(tmp_path / "many", {"method": methods, "size": sizes}, [], seeds=(1, 2))
    for axes in ({"x": "method", "y": "size"}, {"x": "size", "y": "method"}):
        figure, _ = draw(folder, "heatmap", **axes)
        figure.canvas.draw()
        ax = figure.axes[0]
        assert not _overlap(ax.texts)
        assert not _overlap(ax.get_xticklabels())
        assert not _overlap(ax.get_yticklabels())


def test_importance_bars_are_sorted_shares(search_sweep):
    figure, caption = draw(search_sweep, "importance")
    (ax,) = figure.axes
    assert [patch.get_width() for patch in ax.patches] == pytest.approx([70.0, 25.0, 5.0])
    assert tick_names(ax.yaxis) == ["Peak learning rate", "Rank", "Masked gradient"]
    assert "hat decides whether a point is in the best quarter by validation perplexity: peak learning rate 70 %, " in (
        caption
    )
    # 14 points, of which one was pruned and one has diverged
    assert "rank 25 % and masked gradient 5 %; an estimate (PED-ANOVA) from 12 points" in caption
    # a run whose perplexity is too large to be told has no part in the estimate
    path = search_sweep / "trials.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    last = max(i for i, row in enumerate(rows) if row[2] == "complete")
    rows[last][rows[0].index("val_perplexity")] = ""
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    assert "from 11 points" in draw(search_sweep, "importance")[1]


def test_importances_are_estimated_from_points_whatever_their_seeds(tmp_path):
    sweep = rank_sweep(tmp_path / "sweep", importances={"rank": 0.9, "method": 0.1})
    _, caption = draw(sweep, "importance")
    assert "from 8 points in the searched ranges" in caption


def test_a_sampled_rate_is_not_joined_by_lines(search_sweep):
    figure, caption = draw(search_sweep, "lr_curve", x="lr", series="masked")
    assert {container.lines[0].get_linestyle() for container in figure.axes[0].containers} == {"None"}
    assert "points differ in rank too" in caption


def test_telemetry_by_layer(rank_ablation):
    figure, caption = draw(rank_ablation, "telemetry", value="natural_zeros", filter={"method": "elas", "rank": 8})
    (ax,) = figure.axes
    frames = pd.concat([pd.read_csv(path) for path in rank_ablation.glob("runs/003-seed*/telemetry.csv")])
    assert len(frames) == 3 * 9 * 4
    layers = [line for line in ax.lines if len(line.get_xdata()) == 9]
    for layer, line in enumerate(layers):
        expected = 100 * frames[frames["layer"] == layer].groupby("step")["natural_zeros"].mean()
        assert line.get_ydata() == pytest.approx(expected.to_numpy())
    assert {"layer 0", "layer 3"} <= set(texts(ax))
    assert "(%)" in ax.get_ylabel()
    assert "method elas, rank 8" in caption
    assert "lowest in layer 0" in caption


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("metric_by", {}, "a metric_by plot needs `x`"),
        ("metric_by", {"x": "size"}, "'size' was not searched"),
        ("metric_by", {"x": "rank", "metric": "accuracy"}, "metric 'accuracy' is unknown"),
        ("metric_by", {"x": "rank", "series": "method", "baseline": "dense"}, "baseline 'dense' is no value of method"),
        ("curves", {"x": "epochs"}, "x='epochs' is not allowed"),
        ("telemetry", {"value": "zeros"}, "value='zeros' is not allowed"),
        ("heatmap", {"x": "rank"}, "needs `y`"),
        ("differences", {}, "a differences plot needs `x`"),
        ("differences", {"x": "method", "baseline": "dense"}, "baseline 'dense' is no value of method"),
        ("bars", {"x": "rank", "filter": {"method": "other"}}, "filter method=other matches no value"),
    ],
)
def test_wrong_options_are_the_users_to_mend(rank_ablation, kind, options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        draw(rank_ablation, kind, **options)


@pytest.mark.parametrize(
    "kind", ["metric_by", "bars", "differences", "curves", "parallel", "importance", "telemetry", "lr_curve"]
)
def test_a_sweep_without_finished_runs_cannot_be_drawn(tmp_path, kind):
    folder = write_sweep(tmp_path / "dead", {"lr": RATES}, [], states=dict.fromkeys(range(12), "failed"))
    with pytest.raises(CannotDraw):
        draw(
            folder,
            kind,
            x="step" if kind in ("curves", "telemetry") else "lr",
            value="natural_zeros" if kind == "telemetry" else "val_loss",
        )


def test_write_plots_writes_what_is_asked_and_lists_what_it_could_not(rank_ablation):
    summary = json.loads((rank_ablation / "summary.json").read_text())
    summary["plots"] += [{"kind": "importance"}, {"kind": "telemetry", "value": "dropped_energy", "site": "ffn_input"}]
    (rank_ablation / "summary.json").write_text(json.dumps(summary))
    (rank_ablation / "plots").mkdir()
    (rank_ablation / "plots" / "metric_by_old.png").write_bytes(b"stale")
    paths = write_plots(rank_ablation)
    names = [path.name for path in paths]
    assert names == [
        "metric_by_rank_method.png",
        "metric_by_rank_method.svg",
        "curves_method.png",
        "curves_method.svg",
        "telemetry_natural_zeros_method_elas.png",
        "telemetry_natural_zeros_method_elas.svg",
        "captions.json",
    ]
    assert sorted(path.name for path in (rank_ablation / "plots").iterdir()) == sorted(names)
    captions = json.loads(paths[-1].read_text())
    assert [figure["name"] for figure in captions["figures"]] == [name[:-4] for name in names[:-1:2]]
    assert all(figure["caption"].endswith(".") for figure in captions["figures"])
    assert [plot["kind"] for plot in captions["not_drawn"]] == ["importance", "telemetry"]
    assert "no complete run has dropped_energy of ffn_input" in captions["not_drawn"][1]["reason"]
    pixels = imread(paths[0])
    assert pixels.shape[1] == 960  # 4.8 inches at 200 dots an inch
    assert pixels[..., :3].std() > 0.05


def test_unknown_kind_names_the_known_ones(rank_ablation):
    summary = json.loads((rank_ablation / "summary.json").read_text())
    (rank_ablation / "summary.json").write_text(json.dumps({**summary, "plots": [{"kind": "pie"}]}))
    with pytest.raises(UserError, match=r"kind 'pie' is unknown; allowed: metric_by, bars"):
        write_plots(rank_ablation)


def test_same_results_same_bytes_and_settings_of_the_caller_untouched(rank_ablation):
    before = dict(matplotlib.rcParams)
    first = {path.name: path.read_bytes() for path in write_plots(rank_ablation)}
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other"}):
        second = {path.name: path.read_bytes() for path in write_plots(rank_ablation)}
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_nothing_overlaps_or_leaves_the_page(rank_ablation):
    figure, _ = draw(rank_ablation, "metric_by", x="rank", series="method", log_x=True)
    figure.canvas.draw()
    (ax,) = figure.axes
    names = [text for text in ax.texts if text.get_text() in ("lowrank", "elas", "Method")]
    boxes = [text.get_window_extent() for text in names]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
