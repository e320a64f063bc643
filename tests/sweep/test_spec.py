"""A sweep's file: what it means, and what is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from elas_lightning.errors import UserError
from elas_lightning.sweep.spec import Dimension, SweepSpec, label_of

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
        ({"seeds": []}, "seeds: give at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"machines": {"cpu": {"size": "tiny", "data": "pydocs"}}}, "machines: give size and data for cpu and for gpu"),
        ({"trials": 3}, "a grid has no trials"),
        ({"sampler": "tpe"}, "other samplers need them"),
        ({"search": {"lr": {"keys": ["k"], "low": 0.1, "high": 1.0}}}, "a range has no end of values"),
        ({"without": [{"rank": 3}]}, "is no point of the search"),
        ({"without": [{"rank": 1}, {"rank": 2}]}, "without leaves no point"),
        ({"without": [{"rank": 1}], "sampler": "tpe", "trials": 2}, "without leaves out points of a grid"),
        ({"twins": {1: 3}}, "twins: 3 is no choice of rank: 1, 2"),
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
        ({"sead": [1]}, "unexpected keyword argument 'sead'"),
        ({"search": {"rank": {"keys": ["k"], "values": [1]}}}, "unexpected keyword argument 'values'"),
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
    with pytest.raises(UserError, match=r"mine\.yaml: missing 1 required .*'seeds'"):
        SweepSpec.read(path)


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not YAML"), ("- a", "is not a mapping")])
def test_what_is_no_sweep_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        SweepSpec.read(path)
