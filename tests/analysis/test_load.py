"""Reading sweeps: complete, unfinished, odd and broken ones."""

from __future__ import annotations

import json
import shutil

import pytest
from synthetic import METHODS, RANKS, rank_sweep, write_sweep

from elas_lightning.analysis.load import load_sweep
from elas_lightning.analysis.parameters import level_name, make_parameter, name_of, parse_cell, phrase
from elas_lightning.analysis.plots import write_plots
from elas_lightning.analysis.points import best, gather
from elas_lightning.errors import UserError


def test_complete_sweep(rank_ablation):
    results = load_sweep(rank_ablation)
    # whatever the runs' files hold is a number, and what they are of is as in trials.csv
    for frame, words in ((results.curves, set()), (results.telemetry, {"site"})):
        texts = set(frame.select_dtypes(exclude="number").columns)
        assert texts == words | {"run", "state", "method"}
    assert results.missing == ()
    assert len(results.trials) == 24
    assert results.parameter("rank").levels == (4.0, 8.0, 16.0, 32.0)
    assert results.parameter("method").levels == ("lowrank", "elas")
    assert {"run", "seed", "state", "rank", "method", "step", "val_loss"} <= set(results.curves.columns)
    assert set(results.telemetry["layer"]) == {0.0, 1.0, 2.0, 3.0}
    # every row of a curve carries the parameters of its own run
    run = results.trials.iloc[5]
    mine = results.curves[results.curves["run"] == run["run"]]
    assert set(mine["rank"]) == {run["rank"]}
    assert set(mine["seed"]) == {run["seed"]}


def test_a_parameter_may_bear_the_name_of_a_column_of_a_runs_tables(tmp_path):
    search = {"step": {"kind": "choices", "values": [True, False]}, "lr": {"kind": "choices", "values": [0.1, 0.2]}}
    plots = [{"kind": "curves", "series": "step"}, {"kind": "bars", "x": "lr", "filter": {"step": True}}]
    folder = write_sweep(tmp_path / "sweep", search, plots, loss=lambda point, seed: 5.0 + point["lr"] + 0.01 * seed)
    results = load_sweep(folder)
    assert set(results.curves["step_searched"]) == {"yes", "no"}
    assert set(results.curves["lr_searched"]) == {0.1, 0.2}
    assert results.curves["step"].max() == 400
    write_plots(folder)
    captions = json.loads((folder / "plots" / "captions.json").read_text())
    assert [figure["title"] for figure in captions["figures"]] == [
        "Loss during training",
        "Validation perplexity by lr (step yes)",
    ]


def test_unfinished_sweep_says_what_is_missing(tmp_path):
    folder = rank_sweep(tmp_path / "stopped", stop_after=20)
    (folder / "runs" / "999-unknown").mkdir()
    (folder / "runs" / "000-seed1" / "curve.csv").unlink()
    (folder / "runs" / "001-seed1" / "result.json").unlink()
    notes = " ".join(load_sweep(folder).missing)
    assert "4 of 24 planned runs have not finished" in notes
    assert "Point rank 32, method lowrank: 2 of 3 seeds." in notes
    assert "Without any run yet: rank 32, method elas." in notes
    assert "999-unknown" in notes
    assert "for want of a curve.csv: 000-seed1." in notes
    assert "for want of a result.json: 001-seed1." in notes


def test_runs_of_what_the_file_was_before_are_not_missing(rank_ablation):
    (rank_ablation / "runs" / "000-seed1").rename(rank_ablation / "runs" / "earlier")
    shutil.copytree(rank_ablation / "runs" / "earlier", rank_ablation / "runs" / "000-seed1")
    assert load_sweep(rank_ablation).missing == ()


def test_half_written_last_line_of_a_curve_is_a_hole(rank_ablation):
    path = rank_ablation / "runs" / "000-seed1" / "curve.csv"
    path.write_text(path.read_text() + "420,860160,31.5,5.0,,,,0.0")
    assert load_sweep(rank_ablation).curves["step"].max() == 420


def test_repeated_point_and_seed_counts_once(rank_ablation):
    path = rank_ablation / "trials.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    results = load_sweep(rank_ablation)
    assert len(results.trials) == 24
    assert any("repeated a point and seed" in note for note in results.missing)


def test_complete_run_without_a_value_is_left_out_and_named(tmp_path):
    folder = rank_sweep(tmp_path / "hole", loss=lambda point, seed: float("inf") if seed == 2 else 5.0)
    results = load_sweep(folder)
    assert sum("is marked complete but has no val_perplexity" in note for note in results.missing) == 8
    assert all(point.estimate.n == 2 for point in gather(results, ["rank", "method"], "val_perplexity"))


def test_a_folder_of_several_sweeps_names_them(tmp_path):
    (tmp_path / "paper").mkdir()
    parts = [{"name": "table", "folder": "table_60m"}, {"name": "scaling", "folder": "scaling"}]
    (tmp_path / "paper/summary.json").write_text(json.dumps({"name": "paper", "parts": parts}))
    with pytest.raises(UserError, match=r"is of several sweeps: name one of .*/table_60m, .*/scaling"):
        load_sweep(tmp_path / "paper")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.rename(f.parent / "elsewhere"), "does not exist; run `make sweep EXP=rank_ablation` first"),
        (lambda f: (f / "summary.json").unlink(), "summary.json is missing; run `make sweep"),
        (lambda f: (f / "trials.csv").unlink(), "trials.csv is missing; run `make sweep"),
        (lambda f: (f / "summary.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "summary.json").write_text("[]"), "holds a list"),
        (lambda f: (f / "summary.json").write_text("{}"), "key 'name' is missing"),
        (lambda f: (f / "trials.csv").write_text(""), "trials.csv is empty"),
        (lambda f: (f / "trials.csv").write_text("trial,seed\n1,2\n"), "columns state, run, rank, method are missing"),
        (lambda f: (f / "runs/000-seed1/result.json").write_text("nope"), "result.json cannot be read"),
    ],
)
def test_broken_files_are_one_line_to_the_user(rank_ablation, spoil, words):
    spoil(rank_ablation)
    with pytest.raises(UserError) as caught:
        load_sweep(rank_ablation)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("complete", "finished", "state 'finished' is unknown"), ("0,1,complete", "0,,complete", "row 2 has no seed")],
)
def test_unreadable_cells_of_trials(rank_ablation, old, new, words):
    path = rank_ablation / "trials.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        load_sweep(rank_ablation)


def test_seeds_may_be_a_count(tmp_path):
    folder = rank_sweep(tmp_path / "count", seeds=[0, 1, 2], stop_after=23)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "seeds": 3}))
    assert "Point rank 32, method elas: 2 of 3 seeds." in load_sweep(folder).missing


@pytest.mark.parametrize(
    ("text", "value", "name"),
    [
        ("4", 4, "4"),
        ("4.0", 4.0, "4"),
        ("1e-3", 0.001, "0.001"),
        ("", None, "none"),
        ("None", None, "none"),
        ("NA", "NA", "NA"),
        ("True", True, "yes"),
        ("2:4", "2:4", "2:4"),
        ("low-rank ReLU²", "low-rank ReLU²", "low-rank ReLU²"),
        ("['ffn_hidden', 'ffn_input']", ["ffn_hidden", "ffn_input"], "ffn_hidden + ffn_input"),
        ("[0, 1]", [0, 1], "0 + 1"),
        ("[]", [], "none"),
        ('{"attention": 8, "ffn": null}', {"attention": 8, "ffn": None}, "attention=8, ffn=none"),
    ],
)
def test_cells_get_their_type_and_name_back(text, value, name):
    assert parse_cell(text) == value
    assert name_of("x", parse_cell(text)) == name


def test_ranks_mixed_with_full_rank_are_names_in_order():
    parameter = make_parameter("ffn_rank", {"values": [None, 32, 8], "label": "rank"}, [8, None, 32])
    assert parameter.levels == ("8", "32", "full rank")
    assert not parameter.numeric
    assert [phrase(parameter, level) for level in parameter.levels] == ["rank 8", "rank 32", "full rank"]
    assert parameter.label == "Rank"


def test_odd_values_survive_the_way_through_the_files(tmp_path):
    search = {
        "rank": {"kind": "choices", "values": [None, 8], "label": "Rank"},
        "placement": {"kind": "choices", "values": [[], ["ffn_hidden", "attention_input"]], "label": "Placement"},
        "flag": {"kind": "choices", "values": [True, False], "label": "Flag"},
    }
    results = load_sweep(write_sweep(tmp_path / "odd", search, [], loss=lambda p, s: 5.0, seeds=[1]))
    for name, names in {
        "rank": ["8", "full rank"],
        "placement": ["none", "ffn_hidden + attention_input"],
        "flag": ["yes", "no"],
    }.items():
        parameter = results.parameter(name)
        assert [level_name(parameter, level) for level in parameter.levels] == names
        assert set(results.trials[name]) == set(parameter.levels)
    assert len(results.where(results.trials, {"rank": None, "placement": []})) == 2


def test_filter_with_an_unknown_value_or_parameter(rank_ablation):
    results = load_sweep(rank_ablation)
    with pytest.raises(UserError, match="filter method=ELAS matches no value of method; use one of lowrank, elas"):
        results.where(results.trials, {"method": "ELAS"})
    with pytest.raises(UserError, match="'size' was not searched"):
        results.where(results.trials, {"size": 1})


def test_points_settle_the_rest_at_its_best_and_say_so(rank_ablation):
    points = gather(load_sweep(rank_ablation), ["method"], "val_perplexity")
    assert [point.rest for point in points] == [{"rank": 32.0}, {"rank": 32.0}]
    assert [point.settings for point in points] == [4, 4]


def test_one_lucky_seed_does_not_win(tmp_path):
    def loss(point, seed):
        return 4.0 if point["method"] == "elas" else 5.0

    search = {"method": METHODS}
    # elas: only its first seed completes, with a far lower loss
    folder = write_sweep(tmp_path / "luck", search, [], loss=loss, states={4: "diverged", 5: "diverged"})
    points = gather(load_sweep(folder), ["method"], "val_perplexity")
    assert [len(point.values) for point in points] == [3, 1]
    assert points[1].counts["diverged"] == 2
    assert best(points, "val_perplexity") is points[0]


def test_no_finished_run_has_no_best(tmp_path):
    states = dict.fromkeys(range(12), "diverged")
    folder = write_sweep(tmp_path / "dead", {"rank": RANKS}, [], states=states)
    assert best(gather(load_sweep(folder), ["rank"], "val_perplexity"), "val_perplexity") is None


def test_two_lucky_seeds_beside_a_divergence_do_not_win(tmp_path):
    """In the study the point is the worst there is; the tables and captions name the same best one."""

    def loss(point, seed):
        return (4.0 if point["method"] == "elas" else 5.0) + 0.1 * (point["lr"] == 0.01)

    rates = {"kind": "choices", "values": [0.01, 0.1], "label": "learning rate"}
    folder = write_sweep(tmp_path / "luck", {"method": METHODS, "lr": rates}, [], loss=loss, states={11: "diverged"})
    results = load_sweep(folder)
    by_method = gather(results, ["method"], "val_perplexity")
    # the better rate of elas lost a seed
    assert [point.rest for point in by_method] == [{"lr": 0.1}, {"lr": 0.01}]
    everything = gather(results, ["method", "lr"], "val_perplexity")
    assert best(everything, "val_perplexity") is everything[2]
    assert best(everything[3:], "val_perplexity") is everything[3]


def test_a_choice_called_like_a_number_or_a_switch_keeps_its_name(tmp_path):
    names = ["1e-3", "1_000", "08", "true", "None", "(1, 2)"]
    search = {"m": {"kind": "choices", "values": names, "label": "m"}}
    results = load_sweep(write_sweep(tmp_path / "odd", search, [], loss=lambda point, seed: 4.0 + seed))
    assert results.parameter("m").levels == tuple(names)
    assert [point.levels["m"] for point in gather(results, ["m"], "val_perplexity")] == names
    assert results.missing == ()
