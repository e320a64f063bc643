"""Runs side by side: who is one contender, what differs how surely, and what may not be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import rank_sweep
from synthetic_runs import three_methods, write_run

from elas_lightning.analysis.compare import (
    Comparison,
    against_first,
    compare,
    compared_metric,
    configuration_table,
    differences_table,
    results_table,
)
from elas_lightning.analysis.compare_page import answer, frames, write
from elas_lightning.analysis.compare_select import select
from elas_lightning.cli import main
from elas_lightning.errors import UserError


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    return three_methods(tmp_path / "runs")


def _named(comparison: Comparison) -> dict[str, list[int]]:
    return {c.name: [run.result["seed"] for run in c.runs] for c in comparison.contenders}


def test_seeds_of_one_configuration_are_one_contender_named_after_what_is_its_own(methods: Path) -> None:
    # read in the order of their names; places, checkpoints and seeds differ in all of them
    assert _named(compare([str(methods)])) == {"elas": [0, 1, 2], "full": [0, 1, 2], "lowrank": [0, 1, 2]}


def test_the_order_is_the_users_and_a_name_may_be_given(methods: Path) -> None:
    given = [f"LLaMA={methods}/full-{seed}" for seed in (2, 0)] + [f"{methods}/elas-1"]
    assert _named(compare(given)) == {"LLaMA": [0, 2], "elas": [1]}


def test_one_configuration_under_two_names_is_two_contenders(methods: Path) -> None:
    found = compare([f"here={methods}/elas-0", f"there={methods}/elas-1"])
    assert _named(found) == {"here": [0], "there": [1]}
    assert configuration_table(found).rows == ()


def test_two_contenders_never_share_a_name(methods: Path) -> None:
    other = write_run(methods / "elas-other", "elas", 0, config={"ffn_rank": 8})
    names = list(_named(compare([str(methods)])))
    assert len(set(names)) == 4
    assert f"elas ({other})" in names


def test_a_seed_run_twice_counts_once_and_is_said(methods: Path) -> None:
    write_run(methods / "elas-again", "elas", 1, loss=3.0)
    contenders, notes = select([f"{methods}/elas-1", f"{methods}/elas-again", f"{methods}/full-0"])
    assert [len(c.runs) for c in contenders] == [1, 1]
    assert notes == ["elas: 1 run with a seed that another has; the last to finish counts."]


def test_a_run_named_twice_is_no_repetition(methods: Path) -> None:
    _, notes = select([f"{methods}/elas-1", str(methods)])
    assert notes == []


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("elas", {f"rank {rank}, elas" for rank in (4, 8, 16, 32)}),
        ("rank 8", {"rank 8, lowrank", "rank 8, elas"}),
        ("rank=8,ELAS", {"rank 8, elas"}),
        ("", {f"rank {r}, {m}" for r in (4, 8, 16, 32) for m in ("lowrank", "elas")}),
    ],
)
def test_labels_take_a_part_of_a_sweep(tmp_path: Path, labels: str, expected: set[str]) -> None:
    sweep = rank_sweep(tmp_path / "rank_ablation")
    # the synthetic sweep's results have no configuration of their own
    for path in sweep.glob("runs/*/result.json"):
        path.write_text(path.read_text().replace('"config": {}', f'"config": {{"trial": "{path.parent.name[:3]}"}}'))
    contenders, _ = select([f"{sweep}:{labels}" if labels else str(sweep)])
    assert {contender.name for contender in contenders} == expected
    assert all(len(contender.runs) == 3 for contender in contenders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["a=nowhere"], "there is no folder nowhere"),
        (["RUNS/elas-0:ELAS"], "is no sweep, so it has nothing labelled 'ELAS'"),
        (["SWEEP:rank 5"], "labelled 'rank 5'; there are: rank 4, lowrank, elas"),
        (["EMPTY"], "holds no result"),
        (["RUNS/elas-0", "RUNS/elas-1"], "all these runs have one configuration"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    rank_sweep(tmp_path / "sweep")
    (tmp_path / "empty").mkdir()
    places = {"RUNS": str(methods), "SWEEP": str(tmp_path / "sweep"), "EMPTY": str(tmp_path / "empty")}
    given = []
    for argument in arguments:
        for word, place in places.items():
            argument = argument.replace(word, place)
        given.append(argument)
    with pytest.raises(UserError, match=message):
        compare(given)


def test_shared_seeds_are_paired(methods: Path) -> None:
    found = {
        (d.name, d.column): d for d in against_first(compare([f"{methods}/{n}" for n in _order("lowrank", "elas")]))
    }
    item = found["elas", "val_loss"]
    assert item.how == "paired"
    assert item.seeds == (3, 3)
    data = np.array([0.010, 0.011, 0.012])
    half = stats.t.ppf(0.975, 2) * data.std(ddof=1) / math.sqrt(3)
    assert item.difference is not None
    assert item.difference.value == pytest.approx(0.011)
    assert item.difference.low == pytest.approx(0.011 - half)
    # seeds differ by 0.09 nats, so that only pairing finds a hundredth
    table = differences_table(compare([f"{methods}/{n}" for n in _order("lowrank", "elas")]))
    assert [row[5] for row in table.rows if row[1].startswith("Validation loss")] == ["worse"]


def _order(*names: str, seeds: tuple[int, ...] = (0, 1, 2)) -> list[str]:
    return [f"{name}-{seed}" for name in names for seed in seeds]


def test_without_shared_seeds_the_interval_is_welchs_and_says_so(methods: Path) -> None:
    for seed, loss in ((7, 4.00), (8, 4.08), (9, 3.97), (10, 4.02)):
        write_run(methods / f"other-{seed}", "other", seed, loss=loss, config={"ffn_rank": 8})
    given = [f"{methods}/{name}" for name in (*_order("lowrank"), *_order("other", seeds=(7, 8, 9, 10)))]
    comparison = compare(given)
    item = next(d for d in against_first(comparison) if d.column == "val_loss")
    assert (item.how, item.seeds) == ("unpaired", (4, 3))
    expected = stats.ttest_ind([4.00, 4.08, 3.97, 4.02], [4.0, 4.06, 3.97], equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert item.difference is not None
    assert (item.difference.low, item.difference.high) == (pytest.approx(low), pytest.approx(high))
    assert item.difference.p == pytest.approx(expected.pvalue)
    assert "unpaired, since they share fewer than two seeds" in " ".join(answer(comparison))
    assert any("Complete seeds differ" in warning for warning in comparison.warnings)


def test_one_shared_seed_of_several_makes_no_pair(methods: Path) -> None:
    for seed, loss in ((2, 4.00), (7, 4.08), (8, 3.97)):
        write_run(methods / f"other-{seed}", "other", seed, loss=loss, config={"ffn_rank": 8})
    given = [f"{methods}/{name}" for name in (*_order("lowrank"), *_order("other", seeds=(2, 7, 8)))]
    item = next(d for d in against_first(compare(given)) if d.column == "val_loss")
    assert (item.how, item.seeds) == ("unpaired", (3, 3))
    assert item.difference is not None
    assert item.difference.low is not None


@pytest.mark.parametrize(("column", "reading"), [("tokens_per_second", "better"), ("peak_memory_bytes", "worse")])
def test_whether_more_is_better_depends_on_the_figure(methods: Path, column: str, reading: str) -> None:
    for seed in range(3):
        for name, more in (("lowrank", 0), ("elas", 1)):
            path = methods / f"{name}-{seed}/result.json"
            content = json.loads(path.read_text())
            content["metrics"][column] = 1e6 * (1 + more) + seed
            path.write_text(json.dumps(content))
    table = differences_table(compare([f"{methods}/{n}" for n in _order("lowrank", "elas")]))
    label = compared_metric(column).label
    assert [row[5] for row in table.rows if row[1] == label] == [reading]


@pytest.mark.parametrize(
    ("changes", "warning", "column"),
    [
        ({"environment": {"hardware": "H100"}}, "Machines differ", "tokens_per_second"),
        ({"environment": {"world_size": 8}}, "Numbers of processes differ", "tokens_per_second"),
        ({"backend": "triton"}, "Backends differ", "peak_memory_bytes"),
        ({"data": {"fingerprint": "cafe"}}, "Corpora differ", "val_loss"),
        ({"data": {"tokenizer": "t5"}}, "Tokenizers differ", "val_perplexity"),
        ({"data": {"sequence_length": 64}}, "Validation protocols differ", "val_bits_per_byte"),
        ({"tokens": 2_000_000}, "Training tokens differ", "val_loss"),
    ],
)
def test_what_is_not_comparable_is_marked(tmp_path: Path, changes: dict[str, Any], warning: str, column: str) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"a-{seed}", "a", seed)
        write_run(tmp_path / f"b-{seed}", "b", seed, loss=4.2, **changes)
        write_run(tmp_path / f"c-{seed}", "c", seed, loss=4.3)
    found = compare([str(tmp_path)])
    assert any(said.startswith(warning) for said in found.warnings)
    assert ("b", column) in found.unfair
    # c is as fair a match for a as ever
    readings = {(row[0], row[5][:14]) for row in differences_table(found).rows}
    assert ("b", "not comparable") in readings
    assert ("c", "not comparable") not in readings
    if "tokenizer" in changes.get("data", {}):
        assert ("b", "val_bits_per_byte") not in found.unfair


def test_figures_of_what_is_not_comparable_say_so(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", "a", 0)
    write_run(tmp_path / "runs" / "b", "b", 0, environment={"hardware": "H100"})
    text = write(compare([str(tmp_path / "runs")]), tmp_path / "out", "elas compare runs").read_text()
    assert "speed, memory and energy are not comparable" in text
    assert text.count("Not all comparable: machines differ.</figcaption>") == 1  # memory alone


def test_equal_circumstances_give_no_warning(methods: Path) -> None:
    assert compare([str(methods)]).warnings == ()


def test_a_diverged_run_is_said_and_has_no_part_in_means(methods: Path) -> None:
    write_run(methods / "elas-9", "elas", 9, state="diverged")
    found = compare([str(methods)])
    assert any("elas: seed 9 is diverged: the training loss is nan" in warning for warning in found.warnings)
    assert results_table(found).rows[0][-1] == "3 (+1 lost)"


def test_a_diverged_run_makes_the_others_no_less_comparable(methods: Path) -> None:
    before = answer(compare([str(methods)]))
    write_run(methods / "elas-9", "elas", 9, state="diverged")
    found = compare([str(methods)])
    assert found.unfair == {}
    assert answer(found) == before


def test_a_run_that_died_is_said_and_is_no_contender(methods: Path) -> None:
    """It has left no configuration; as a contender of its own it would be what all the others are held against."""
    alone = compare([str(methods)])
    for name in ("0-dead", "1-dead"):
        died = write_run(methods / name, "elas", 7)
        result = json.loads((died / "result.json").read_text())
        result |= {"state": "failed", "reason": "MemoryError: no more", "config": {}, "metrics": {}, "finished": ""}
        (died / "result.json").write_text(json.dumps({**result, "data": {}, "environment": {}, "backend": {}}))
    found = compare([str(methods)])
    assert _named(found) == _named(alone)
    assert found.warnings == alone.warnings
    assert answer(found) == answer(alone)
    said = "seed 7 is failed: MemoryError: no more; it has no part in the comparison."
    assert found.notes == (f"0-dead: {said}", f"1-dead: {said}")
    with pytest.raises(UserError, match="none of these runs can be compared: 0-dead: seed 7 is failed"):
        compare([str(methods / "0-dead"), str(methods / "1-dead")])


def test_one_seed_that_is_not_shared_is_not_called_shared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", 0, loss=4.0)
    write_run(tmp_path / "b", "b", 1, loss=4.1)
    _, against = answer(compare([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert "b is 10.5 % above a in seeds that they do not share, too few for an interval" in against


def test_energy_is_shown_where_it_was_measured_and_nowhere_else(tmp_path: Path, methods: Path) -> None:
    assert not any("nergy" in column for column in results_table(compare([str(methods)])).columns)
    write_run(tmp_path / "a", "a", 0, energy_joules=5000.0, tokens_per_joule=200.0)
    write_run(tmp_path / "b", "b", 0)
    table = results_table(compare([str(tmp_path / "a"), str(tmp_path / "b")]))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["Energy of a run (kJ)"] == "5.000"
    assert dict(zip(table.columns, table.rows[1], strict=True))["Tokens per joule"] == "not measured"


def test_a_counter_that_saw_nothing_has_measured_nothing(tmp_path: Path) -> None:
    """A run may be over before a GPU counts its first joule."""
    write_run(tmp_path / "a", "a", 0, energy_joules=5000.0)
    write_run(tmp_path / "b", "b", 0, energy_joules=0.0)
    found = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert results_table(found).rows[1][results_table(found).columns.index("Energy of a run (kJ)")] == "not measured"
    assert next(d for d in against_first(found) if d.column == "energy_joules").difference is None


def test_differing_configuration_keys_are_listed(methods: Path) -> None:
    rows = {row[0]: row[1:] for row in configuration_table(compare([str(methods)])).rows}
    assert rows == {
        "model.config.ffn_rank": ("16", "full rank", "16"),
        "model.config.method": ("elas", "full", "lowrank"),
    }


def test_the_folder_holds_page_tables_and_plots(methods: Path, tmp_path: Path) -> None:
    found = compare([str(methods)])
    page = write(found, tmp_path / "out", "elas compare runs")
    text = page.read_text()
    for piece in ("elas against full and lowrank", "Answer", "Differences", "data:image/svg+xml", "elas compare runs"):
        assert piece in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    names = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    stems = ("loss_curves", "pareto_flops", "pareto_memory", "pareto_parameters")
    assert names == {f"{stem}.{end}" for stem in stems for end in ("png", "svg")}
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 9
    differences = pd.read_csv(tmp_path / "out" / "differences.csv")
    assert set(differences["how"]) == {"paired"}
    contenders = pd.read_csv(tmp_path / "out" / "contenders.csv")
    expected = np.mean([run.metrics["val_loss"] for run in found.contenders[0].runs])
    assert contenders["val_loss"][0] == pytest.approx(expected)
    before = text
    write(found, tmp_path / "out", "elas compare runs")
    assert page.read_text() == before


def test_what_cannot_be_drawn_is_said_on_the_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, name, 0)
        (tmp_path / "runs" / name / "curve.csv").unlink()
    page = write(compare([str(tmp_path / "runs")]), tmp_path / "out", "elas compare runs")
    assert "Loss during training: no run has val_loss in its curve.csv" in page.read_text()


def test_many_contenders_are_summed_up(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 0.05, -0.04)):
        for name, loss in (("a", 4.0), ("b", 4.1), ("c", 3.9), ("d", 4.0 + 0.01 * (seed - 1))):
            write_run(tmp_path / f"{name}-{seed}", name, seed, loss=loss + shift)
    write_run(tmp_path / "e-0", "e", 0, loss=4.2)
    levels, against = answer(compare([str(tmp_path)]))
    assert "for c (3 seeds) and 66.69 for e (1 seed)" in levels
    for piece in ("above it: “b”", "below it: “c”", "there is none: “d”", "too few for a test: “e”"):
        assert piece in against


def test_nothing_completed_is_an_answer_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, name, 0, state="diverged")
    found = compare([str(tmp_path / "runs")])
    assert answer(found) == ["No run has completed, so there is no answer yet."]
    assert frames(found)["runs"]["state"].tolist() == ["diverged", "diverged"]
    assert write(found, tmp_path / "out", "elas compare runs").is_file()


def test_the_command_prints_and_writes(
    methods: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", str(methods), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "lowrank" in shown
    assert "model.config.ffn_rank" in shown
    assert f"page: {tmp_path / 'out' / 'compare.html'}" in shown
    assert max(len(line) for line in shown.splitlines() if line[0] in "│┃├") <= 80
    (tmp_path / "file").touch()
    assert main(["compare", str(methods), "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_screen_shows_a_name_with_its_brackets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    command = "elas fit --model.config.sparsity.placement=[ffn_hidden]"
    write_run(tmp_path / "a", "a", 0)
    write_run(tmp_path / "b", "b", 0, environment={"command": command})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.count("placement=[ffn_hidden]") >= 3  # in a warning and in the heads of both tables
