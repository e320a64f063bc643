"""A sweep's file: what it means, and what is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from elas_lightning import plot_options
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.plots.base import TIME_LABELS
from elas_lightning.analysis.plots.telemetry import QUANTITIES
from elas_lightning.errors import UserError
from elas_lightning.sweep.spec import Dimension, SweepSpec, label_of
from elas_lightning.training.recorder import CURVE_FIELDS, TELEMETRY_FIELDS

MINIMAL: dict[str, Any] = {
    "question": "Why?",
    "base": ["sizes/{size}"],
    "machines": {"cpu": {"size": "a", "data": "b"}, "gpu": {"size": "a", "data": "b"}},
    "search": {
        "rank": {"keys": ["k"], "choices": [1, 2]},
        "form": {"keys": ["f"], "choices": {"no": [], "yes": ["x"]}},
    },
    "seeds": [0, 1],
}


def _read(tmp_path: Path, **changes: Any) -> SweepSpec:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}, sort_keys=False))
    return SweepSpec.read(path)


def test_the_grid_varies_the_first_dimension_fastest(tmp_path: Path) -> None:
    assert list(_read(tmp_path).grid()) == [
        {"rank": 1, "form": "no"},
        {"rank": 2, "form": "no"},
        {"rank": 1, "form": "yes"},
        {"rank": 2, "form": "yes"},
    ]


def test_points_can_be_left_out(tmp_path: Path) -> None:
    spec = _read(tmp_path, without=[{"rank": 2, "form": "no"}])
    assert {"rank": 2, "form": "no"} not in list(spec.grid())
    assert len(list(spec.grid())) == 3


@pytest.mark.parametrize(
    "plot",
    [
        {"kind": "curves", "series": "rank", "style": "form", "x": "step", "value": "train_loss"},
        {"kind": "telemetry", "value": "natural_zeros", "x": "tokens", "filter": {"rank": 1}},
        {"kind": "pareto", "x": "parameters", "series": "rank"},
    ],
)
def test_an_x_may_be_no_parameter(tmp_path: Path, plot: dict[str, Any]) -> None:
    assert _read(tmp_path, plots=[plot]).plots == (plot,)


def test_a_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    text = yaml.safe_dump({**MINIMAL, "search": {}, "plots": []}, sort_keys=False)
    for written, choices in (("1e-3, 3E-03, 2e4", [1e-3, 3e-3, 2e4]), ("'1e-3', 1.5e-3, 2", ["1e-3", 1.5e-3, 2])):
        path = tmp_path / "mine.yaml"
        path.write_text(
            text.replace("search: {}", f"search: {{lr: {{keys: [model.optimizer.lr], choices: [{written}]}}}}")
        )
        assert list(SweepSpec.read(path).search[0].choices) == choices


def test_labels_stand_for_values() -> None:
    assert Dimension("a", keys=("k",), choices={"two": 2}).options == {"two": 2}
    assert Dimension("a", keys=("k",), choices=(3, 4)).options == {3: 3, 4: 4}
    assert Dimension("a", overlays={"ELAS": "methods/elas"}).options == {"ELAS": "methods/elas"}
    assert [label_of(value) for value in (["x", "y"], [], 0.5)] == ["x + y", "none", 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "best"}, "sampler is 'best': grid, tpe, random"),
        ({"pruner": "axe"}, "pruner is 'axe': none, median"),
        ({"objective": "speed"}, "objective is 'speed': val_perplexity"),
        ({"search": {}}, "search is empty"),
        ({"search": {"seed": {"keys": ["k"], "choices": [1]}}}, "search.seed: trials.csv has a column of this name"),
        ({"search": {"order": {"keys": ["data.seed"], "choices": [1]}}}, "order sets data.seed, which seeds sets"),
        ({"search": {n: {"keys": ["k"], "choices": [1]} for n in "ab"}}, "search.b sets k, which search.a sets"),
        (
            {"search": {"a": {"keys": ["k.b"], "choices": [1]}, "c": {"keys": ["k"], "choices": {"x": {"b": 2}}}}},
            "search.c sets k.b, which search.a sets",
        ),
        ({"seeds": []}, "seeds: give at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"machines": {"cpu": {"size": "tiny", "data": "pydocs"}}}, "machines: give size and data for cpu and for gpu"),
        ({"trials": 3}, "a grid has no trials"),
        ({"sampler": "tpe"}, "other samplers need them"),
        ({"search": {"lr": {"keys": ["k"], "low": 0.1, "high": 1.0}}}, "a range has no end of values"),
        ({"without": [{"rank": 3}]}, "without: 3 is no choice of rank: 1, 2"),
        ({"without": [{"rnk": 1}]}, "without has 'rnk', which is not searched: rank, form"),
        ({"without": [{"rank": [1, 2]}]}, "without has {'rank': [1, 2]}: give one choice of each"),
        ({"pruner": "median", "baseline": "no"}, "baseline is 'no': give a mapping"),
        ({"pruner": "median", "baseline": {"form": ["no"]}}, "baseline has {'form': ['no']}: give one choice"),
        ({"pruner": "median", "pruning": [4]}, "pruning is [4]: give a mapping"),
        ({"pruner": "median", "pruning": {"warmup": 4}}, "pruning has 'warmup', which is no field: there are startup"),
        ({"pruner": "median", "pruning": {"min_fraction": True}}, "pruning.min_fraction is True"),
        ({"baseline": {"form": "no"}}, "baseline and pruning are the pruner's, and there is none"),
        ({"question": None}, "question is None: give a sentence"),
        ({"name": "another"}, "has 'name', which is no field: there are question, base"),
        ({"objective": None}, "objective is None: give the name of a figure, or a list of names"),
        ({"objective": {"seconds": "maximize"}}, "objective is {'seconds': 'maximize'}: give the name"),
        ({"objective": [["seconds"]]}, "objective is [['seconds']]: give the name"),
        ({"base": ["sizes/{size.x}"]}, "what may stand in braces is size and data"),
        ({"overrides": {3: 4}}, "overrides has 3: give dotted configuration keys"),
        ({"machines": {n: {"size": "a", "data": "b", "workers": 2} for n in ("cpu", "gpu")}}, "'workers': 2"),
        ({"without": [{"rank": 1}, {"rank": 2}]}, "without leaves no point"),
        ({"without": [{"rank": 1}], "sampler": "tpe", "trials": 2}, "without leaves out points of a grid"),
        ({"twins": {1: 3}}, "twins: 3 is no choice of rank: 1, 2"),
        ({"twins": {1: [2]}}, "twins has {1: [2]}: give one choice of each"),
        ({"twins": {1: 2}}, "twins has 1: 2: give the choices of rank labels"),
        (
            {"search": {"rank": {"keys": ["k"], "choices": {"low": 1, "high": 2}}}, "twins": {"low": "low"}},
            "twins: 'low' is held against itself; name another choice of rank",
        ),
        (
            {"search": {"rank": {"keys": ["k"], "choices": ["full", 0.5], "relative_to": "model.config.ffn_rank"}}},
            "search.rank.choices has 'full': give numbers, which are factors of model.config.ffn_rank",
        ),
        ({"plots": [{"kind": "pie"}]}, "plots: kind is 'pie': metric_by"),
        ({"plots": [{"kind": ["bars"]}]}, "plots: kind is ['bars']: metric_by"),
        ({"plots": [{"kind": "bars", "x": "width"}]}, "x='width', which is not searched: rank, form"),
        ({"plots": [{"kind": "curves", "style": "width"}]}, "style='width', which is not searched"),
        ({"plots": [{"kind": "bars", "x": "rank", "grup": "form"}]}, "bars has no option 'grup': there are x, gr"),
        ({"plots": [{"kind": "importance", "metric": "val_loss"}]}, "no option 'metric': there are none"),
        ({"plots": [{"kind": "heatmap", "x": "rank"}]}, "plots: heatmap needs y"),
        ({"plots": [{"kind": "telemetry"}]}, "plots: telemetry needs value"),
        ({"plots": [{"kind": "telemetry", "value": "zeros"}]}, "telemetry has value='zeros': natural_zeros, "),
        ({"plots": [{"kind": "curves", "x": "rank"}]}, "curves has x='rank': tokens, step, seconds"),
        ({"plots": [{"kind": "bars", "x": "rank", "metric": "train_loss"}]}, "metric='train_loss': val_loss, "),
        ({"plots": [{"kind": "pareto", "x": "rank"}]}, "pareto has x='rank': val_loss, "),
        ({"plots": [{"kind": "lr_curve"}]}, "lr_curve has x='lr', which is not searched"),
        ({"plots": [{"kind": "bars", "x": "rank", "filter": "form=no"}]}, "filter='form=no': give a mapping"),
        (
            {"plots": [{"kind": "bars", "x": "rank", "filter": {"form": "on"}}]},
            "bars: 'on' is no choice of form: no, y",
        ),
        ({"plots": [{"kind": "bars", "x": "form", "baseline": "on"}]}, "bars: 'on' is no choice of form: no, yes"),
        ({"plots": [{"kind": "bars", "x": "rank", "group": "form", "focus": 1}]}, "bars: 1 is no choice of form"),
        ({"sead": [1]}, "has 'sead', which is no field: there are"),
        ({"search": {"rank": {"keys": ["k"], "values": [1]}}}, "search.rank has 'values', which is no field: there"),
        ({"search": {"rank": {"keys": ["k"], "choices": [2, 1, 2]}}}, "choices has one value twice: 2, 1, 2"),
        ({"search": {"rank": {"keys": ["k"], "choices": [1], "log": True}}}, "log is how values between low and high"),
        ({"search": {"rank": {"keys": ["k"], "choices": [{"a": 1}]}}}, "choices has {'a': 1}: give a number or a text"),
        ({"search": {"rank": {"keys": ["k"], "choices": [1], "label": ["a"]}}}, "label is ['a']: give a text"),
        ({"search": {"a": {"overlays": {"x": ["m"]}}}}, "search.a.overlays.x is ['m']: give the name of an overlay"),
        ({"search": {"lr": {"keys": ["k"], "low": 0.1, "high": 1.0, "log": "yes"}}}, "log is 'yes': give true or"),
        ({"search": {"lr": {"keys": ["k"], "low": 0.1, "high": float("inf")}}}, "high is inf: give a number"),
        ({"search": {"rank": {"keys": ["k"]}}}, "give exactly one of overlays, choices, or low and high"),
        ({"search": {"rank": {"choices": [1]}}}, "choices and ranges need keys"),
        ({"search": {"a": {"overlays": {"x": "m"}, "factors": {"y": {"k": 2}}}}}, "'y' is none of the overlays'"),
        ({"search": {"a": {"factors": {"y": {"k": 0}}}}}, "'y' has k: 0: give a number above 0"),
        ({"search": {"a": {"factors": {"y": {"k": True}}}}}, "'y' has k: True: give a number above 0"),
        ({"search": {"a": {"factors": {1: {"k": 2}}, "keys": ["k"]}}}, "overlays take none"),
        ({"search": {"lr": {"keys": ["k"], "low": 2.0, "high": 1.0}}}, "both are needed, low below high"),
        ({"search": {"lr": {"keys": ["k"], "low": 0.0, "high": 1.0, "log": True}}}, "starts above 0"),
    ],
)
def test_a_wrong_field_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        _read(tmp_path, **changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in MINIMAL.items() if k != "seeds"}, sort_keys=False))
    with pytest.raises(UserError, match=r"mine\.yaml lacks seeds: question, base, machines, search, seeds are needed"):
        SweepSpec.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "is not a mapping"),
        ("search:\n  rank: {low: 1}\n  rank: {low: 2}\n", "'rank' stands twice in one mapping .* line 3"),
    ],
)
def test_what_is_no_sweep_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        SweepSpec.read(path)


def test_what_is_merged_in_may_be_overruled(tmp_path: Path) -> None:
    text = yaml.safe_dump({**MINIMAL, "search": {}}, sort_keys=False)
    path = tmp_path / "mine.yaml"
    dimensions = "{a: &a {keys: [k], choices: [1]}, b: {<<: *a, keys: [l]}}"
    path.write_text(text.replace("search: {}", f"search: {dimensions}"))
    assert [d.keys for d in SweepSpec.read(path).search] == [("k",), ("l",)]


def test_options_of_plots_are_those_that_can_be_drawn() -> None:
    assert set(plot_options.TIMES) == set(TIME_LABELS)
    assert set(plot_options.QUANTITIES) == set(QUANTITIES) <= set(TELEMETRY_FIELDS)
    assert {metric_of(name).column for name in plot_options.CURVES} <= set(CURVE_FIELDS)
