"""``elas sweep``: names, options, sweep files of every wrong shape, studies that are none."""

from copy import deepcopy
from typing import Any

import pytest
from good_sweep import GRID


def _changed(**changes: Any) -> dict[str, Any]:
    return {**deepcopy(GRID), **changes}


FILES = {
    "empty": ("", "mine.yaml…mapping"),
    "list": ("- a\n- b\n", "mine.yaml…mapping"),
    "text": ("rank ablation, please\n", "mine.yaml…mapping"),
    "not-yaml": ("question: [what\n", "mine.yaml…not YAML"),
    "binary": (b"\xff\xfe\x00\x80", "mine.yaml…not YAML"),
    "unknown-field": (_changed(sead=[1]), "mine.yaml…'sead'…there are…seeds"),
    "no-seeds": ({k: v for k, v in GRID.items() if k != "seeds"}, "mine.yaml…seeds"),
    "seeds-twice": (_changed(seeds=[0, 0]), "mine.yaml…seeds"),
    "seeds-number": (_changed(seeds=3), "mine.yaml…seeds"),
    "seeds-words": (_changed(seeds=["one"]), "mine.yaml…seeds"),
    "seeds-negative": (_changed(seeds=[-1]), "mine.yaml…seeds has -1"),
    "base-text": (_changed(base="sizes/small"), "mine.yaml…base"),
    "base-unknown": (_changed(base=["sizes/huge"]), "sizes/huge…choose one of small"),
    "base-placeholder": (_changed(base=["sizes/{width}"]), "base…width"),
    "machines-list": (_changed(machines=["cpu"]), "mine.yaml…machines"),
    "machines-half": (_changed(machines={"cpu": {"size": "small"}, "gpu": {}}), "mine.yaml…machines"),
    "machines-text": (_changed(machines={"cpu": "small", "gpu": "small"}), "mine.yaml…machines"),
    "machines-size": (
        _changed(machines={"cpu": {"size": "small", "data": "own"}, "gpu": {"size": "smal", "data": "own"}}),
        "mine, machines.gpu: there is no overlay experiments/sizes/smal.yaml: choose one of small",
    ),
    "machines-data": (
        _changed(base=["sizes/{size}", "data/{data}"],
                 machines={"cpu": {"size": "small", "data": "own"}, "gpu": {"size": "small", "data": "c5"}}),
        "mine, machines.gpu: there is no overlay experiments/data/c5.yaml: choose one of own",
    ),
    "search-list": (_changed(search=["rank"]), "mine.yaml…search"),
    "search-empty": (_changed(search={}), "mine.yaml…search"),
    "search-null": (_changed(search=None), "mine.yaml…search"),
    "dimension-text": (_changed(search={"rank": "all"}, plots=[]), "mine.yaml…search.rank"),
    "dimension-field": (_changed(search={"rank": {"key": ["a"]}}, plots=[]), "mine.yaml…'key'…there are…keys"),
    "choices-and-range": (
        _changed(search={"rank": {"keys": ["seed"], "choices": [1], "low": 1}}, plots=[]),
        "search.rank",
    ),
    "range-upside-down": (
        _changed(search={"rank": {"keys": ["seed"], "low": 2, "high": 1}}, plots=[]), "low is 2"),
    "range-words": (
        _changed(search={"rank": {"keys": ["seed"], "low": "a", "high": "b"}}, plots=[]), "search.rank…low"),
    "overlay-unknown": (
        _changed(search={"method": {"overlays": {"x": "methods/nothing"}}}, plots=[]), "methods/nothing"),
    "overlays-list": (
        _changed(search={"method": {"overlays": ["methods/elas"]}}, plots=[]), "search.method…overlays"),
    "key-unknown": (
        _changed(search={"rank": {"keys": ["model.config.rnak"], "choices": [1]}}, plots=[]),
        "model.config.rnak",
    ),
    "value-impossible": (
        _changed(search={"rank": {"keys": ["model.config.ffn_rank"], "choices": [99]}}, plots=[]),
        "rank 99…ffn_rank",
    ),
    "relative-to-unknown": (
        _changed(search={"rank": {"keys": ["model.config.ffn_rank"], "choices": [1], "relative_to": "model.x"}},
                 plots=[]), "relative_to…model.x"),
    "sampler": (_changed(sampler="oracle"), "mine.yaml…sampler…grid, tpe, random"),
    "pruner": (_changed(pruner="secateurs"), "mine.yaml…pruner"),
    "objective": (_changed(objective="beauty"), "mine.yaml…objective"),
    "trials-of-a-grid": (_changed(trials=3), "mine.yaml…trials"),
    "trials-negative": (_changed(sampler="tpe", trials=-3), "mine.yaml…trials"),
    "trials-words": (_changed(sampler="tpe", trials="some"), "mine.yaml…trials"),
    "without-nothing": (_changed(without=[{"rank": 77}]), "mine.yaml…without"),
    "without-text": (_changed(without="rank"), "mine.yaml…without"),
    "overrides-list": (_changed(overrides=["a"]), "mine.yaml…overrides"),
    "plot-kind": (_changed(plots=[{"kind": "pie"}]), "mine.yaml…pie"),
    "plot-axis": (_changed(plots=[{"kind": "metric_by", "x": "depth"}]), "mine.yaml…depth"),
    "plots-text": (_changed(plots="all"), "mine.yaml…plots"),
    "parts-text": ({"question": "?", "parts": "grid"}, "mine.yaml…parts"),
    "parts-unknown": ({"question": "?", "parts": ["gird"]}, "gird…choose one of"),
    "parts-itself": ({"question": "?", "parts": ["mine"]}, "mine.yaml…parts"),
    "parts-of-words": ({"question": "?", "parts": ["grid"], "budget_minutes": 3}, "mine.yaml…budget_minutes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files(place: Any, kind: str) -> None:
    content, saying = FILES[kind]
    place.write("sweeps/mine.yaml", content)
    place.refuses("sweep", "mine", "--dry-run", saying=saying)


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["gird"], "'gird'…choose one of grid"),
        (["sweeps/gird.yaml"], "sweeps/gird.yaml"),
        (["sweeps"], "'sweeps'…choose one of grid"),
        ([""], "choose one of grid"),
        (["../grid"], "choose one of grid"),
        (["grid", "other"], "one name"),
        (["grid", "--size", "61m"], "61m…choose one of small"),
        (["grid", "--size", "../methods/elas"], "size"),
        (["grid", "--data", "own"], "--data own…leave it out"),
        (["grid", "--set", "model.config.ffn_rank"], "not KEY=VALUE"),
        (["grid", "--set", "=3"], "not KEY=VALUE"),
        (["grid", "--set", "model.config.ffn=[1"], "not YAML"),
        (["grid", "--set", "model.config.fnf=1"], "model.config.fnf"),
        (["grid", "--set", "model.config.num_heads=3"], "num_heads"),
        (["grid", "--set", "trainer.val_check_interval=0"], "trainer.val_check_interval"),
        (["grid", "--set", "model.optimizer.lr=.nan"], "model.optimizer.lr is nan…finite"),
        (["grid", "--set", "data.batch_size=0"], "data.batch_size=0…at least 1"),
        (["grid", "--budget", "soon"], "--budget…soon"),
        (["grid", "--budget", "nan"], "--budget…nan"),
        (["grid", "--budget", "-5"], "--budget…-5"),
        (["grid", "--patience", "inf"], "--patience…inf"),
        (["grid", "--workers", "0"], "--workers…0…1 or more"),
        (["grid", "--workers", "two"], "--workers…two"),
        (["grid", "--wrokers", "2"], "--wrokers"),
        (["grid", "--size"], "--size…sweep --help"),
        (["status", "nothing"], "no study in runs/nothing"),
        (["status"], "no study below runs/"),
    ],
)
def test_options(place: Any, arguments: list[str], saying: str) -> None:
    dry = [] if arguments[0] == "status" else ["--dry-run"]
    place.refuses("sweep", *arguments, *dry, saying=saying)


def test_a_project_without_its_folders(place: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (place.root / "sweeps/grid.yaml").unlink()
    place.refuses("sweep", "grid", saying="no sweep named 'grid'")


def test_a_corpus_that_is_not_there(place: Any) -> None:
    place.write("sweeps/mine.yaml", _changed(base=["sizes/{size}", "data/{data}"]))
    saying = "no overlay experiments/data/c5.yaml…choose one of own"
    place.refuses("sweep", "mine", "--data", "c5", "--dry-run", saying=saying)


def test_runs_that_is_a_file(place: Any) -> None:
    place.write("runs", "in the way")
    place.refuses("sweep", "grid", saying="runs")


@pytest.mark.parametrize("url", ["nothing", "ftp://host/file", "journal:///nowhere/at/all"])
def test_status_of_a_storage_that_is_none(place: Any, url: str) -> None:
    place.refuses("sweep", "status", "grid", "--storage", url, saying="storage")


def test_status_of_a_study_that_is_torn(place: Any) -> None:
    place.write("runs/grid/study.db", "this is no database\n" * 200)
    place.refuses("sweep", "status", "grid", saying="study.db…not a database")
