"""What the document on the paper works out: verdicts either way, missing rows marked, fits, protocols, questions."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic import write_sweep
from synthetic_paper import BATCHES, EFFECTS, METHODS, method_loss, write_paper

from elas_lightning.analysis.load import load_sweep
from elas_lightning.analysis.paper.forest import forest
from elas_lightning.analysis.paper.load import load_paper
from elas_lightning.analysis.paper.memory import memory_sentences, memory_table, sizes_table
from elas_lightning.analysis.paper.protocol import batches_for, flattery, measured, protocol_sentences, protocol_table
from elas_lightning.analysis.paper.published import published, published_perplexities, published_tables
from elas_lightning.analysis.paper.questions import questions
from elas_lightning.analysis.paper.scaling import scaling_sentences, scaling_series, scaling_table
from elas_lightning.analysis.paper.speed import by_device, speed_answers
from elas_lightning.analysis.paper.table import NOT_RUN, against_baseline, against_twins, methods, methods_table
from elas_lightning.analysis.paper.verdicts import close_to_twin, completeness, verdicts, winner
from elas_lightning.analysis.statistics import holm


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return load_paper(write_paper(tmp_path_factory.mktemp("runs")))


def _changed(tmp_path, **changes):
    return load_paper(write_paper(tmp_path, table=changes))


def _rows(paper):
    table = methods_table(paper.table)
    assert all(len(row) == len(table.columns) for row in table.rows)
    # two columns are called p (Holm), so the last one of them stays
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def _said(paper):
    return {q.number: " ".join([*q.answered, *q.open]) for q in questions(paper)}


def test_the_table_has_every_method_with_twin_and_verdict(paper):
    rows = _rows(paper)
    assert tuple(rows) == METHODS
    assert rows["ELAS"]["Its dense twin"] == "low-rank ReLU²"
    assert rows["ELAS"]["Equivalent within 2 %?"] == "yes, within 2 %"
    assert rows["full-rank SwiGLU"]["Against full-rank SwiGLU (%)"] == ""
    assert rows["ELAS"]["Parameters (M)"] == "1.09"
    assert rows["ELAS"]["Weights + gradients (GB)"] == "0.00655"  # 6 bytes a parameter, as the paper counts
    found = against_twins(paper.table)[0]
    assert found.difference.value == pytest.approx(100 * math.expm1(0.004))


def test_p_values_are_corrected_over_their_family(paper):
    family = against_baseline(paper.table)
    assert len(family) == len(METHODS) - 1
    assert [one.p for one in family] == pytest.approx(holm([one.difference.p for one in family]))
    twins = against_twins(paper.table)
    assert [one.p_equivalence for one in twins] == pytest.approx(holm([one.equivalence.p for one in twins]))


def test_what_did_not_run_stands_in_the_table_as_missing(tmp_path):
    rows = _rows(_changed(tmp_path, stop_after=8))
    assert rows["ELAS"]["Validation perplexity"].endswith(f"(1 {NOT_RUN} of 3 seeds)")
    for method in ("ELAS + LORO", "ELAS + Muon"):
        assert rows[method]["Validation perplexity"] == NOT_RUN
        assert rows[method]["Parameters (M)"] == rows[method]["Peak memory (MB)"] == ""


def test_a_diverged_seed_is_said_in_the_cell_and_forbids_equivalence(tmp_path):
    paper = _changed(tmp_path, states={6: "diverged"})
    row = _rows(paper)["ELAS"]
    assert "(1 diverged of 3 seeds)" in row["Validation perplexity"]
    assert row["Equivalent within 2 %?"] == "no: 1 run diverged"
    assert "is not within 1 %" in close_to_twin(against_twins(paper.table)[0])
    # one in the table, one among the warm-ups
    assert "2 diverged, kept and shown below" in completeness(paper)


@pytest.mark.parametrize(
    ("effect", "noise", "words"),
    [
        (0.004, 0.001, "ELAS is within 1 % of its dense low-rank twin, low-rank ReLU², in perplexity (+0."),
        (0.004, 0.008, "is within 1 % of its dense low-rank twin, low-rank ReLU², but the interval is not"),
        (0.05, 0.001, "ELAS is not within 1 % of its dense low-rank twin, low-rank ReLU²: it is worse"),
        (-0.05, 0.001, "ELAS is not within 1 % of its dense low-rank twin, low-rank ReLU²: it is better"),
        (0.015, 0.008, "by its mean"),
    ],
)
def test_the_verdict_is_said_either_way(tmp_path, effect, noise, words):
    paper = _changed(tmp_path, loss=method_loss({**EFFECTS, "ELAS": effect}, noise))
    assert words in verdicts(paper)[0]


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ({}, "ELAS + LORO comes first"),
        ({}, "so it beats plain ELAS beyond the interval"),
        ({"ELAS": -0.1}, "ELAS + LORO and ELAS + Muon do not beat plain ELAS"),
        ({"ELAS + LORO": 0.0038}, "no difference was found between ELAS + LORO and plain ELAS"),
    ],
)
def test_the_winner_among_ours(tmp_path, effects, words):
    loss = method_loss({**EFFECTS, **effects}, noise=0.001)
    assert words in winner(_changed(tmp_path, loss=loss).table)


def test_one_lucky_seed_beside_a_divergence_is_said_to_be_that(tmp_path):
    text = winner(_changed(tmp_path, stop_after=11, states={9: "diverged"}).table)
    assert "ELAS + LORO has only 1 complete and 1 diverged runs" in text
    assert "nothing with as many seeds is there to beat plain ELAS" in text
    assert "does not beat" not in text


def test_the_winner_is_corrected_for_being_picked(tmp_path):
    """ELAS + LORO's own interval leaves zero out; twice its p, for it and ELAS + Muon, is above 5 %."""
    usual = method_loss({**EFFECTS, "ELAS + LORO": EFFECTS["ELAS"] - 0.0059, "ELAS + Muon": EFFECTS["ELAS"]})

    def loss(point, seed):
        return usual(point, seed) + 0.003 * (point["method"] == "ELAS + Muon") * (seed == 1)

    table = _changed(tmp_path, loss=loss).table
    text = winner(table)
    points = {name: point for name, point in methods(table).items() if name.startswith("ELAS")}

    def p(name):
        ours = np.log([points[name].values[seed] for seed in (1, 2, 3)])
        return stats.ttest_rel(ours, np.log([points["ELAS"].values[seed] for seed in (1, 2, 3)])).pvalue

    found = p("ELAS + LORO")
    adjusted = 2 * found
    assert found < 0.05 < adjusted < 2 * p("ELAS + Muon")
    assert f"it was picked as the best of 2 (p {adjusted:.3f}, Holm), so that it is not shown to beat" in text
    assert "so it beats" not in text


def test_a_winner_with_a_diverged_run_is_none(tmp_path):
    text = winner(_changed(tmp_path / "one", states={9: "diverged"}).table)  # of ELAS + LORO, the best
    assert "ELAS comes first" in text
    assert "ELAS + LORO has only 2 complete and 1 diverged runs" in text
    text = winner(_changed(tmp_path / "all", states=dict.fromkeys((6, 9, 12), "diverged")).table)
    assert "so there is no winner among them" in text
    assert "beats" not in text


def test_contenders_without_runs_are_named(tmp_path):
    text = winner(_changed(tmp_path / "some", stop_after=9).table)
    assert "only ELAS has finished runs (ELAS + LORO and ELAS + Muon have no finished run yet)" in text
    empty = _changed(tmp_path / "empty", stop_after=0)
    assert "None of our contenders has a finished run yet" in winner(empty.table)
    assert "share no finished seed" in verdicts(empty)[0]


def test_small_budgets_are_said_to_be_small(paper):
    assert any("neither confirm nor refute" in sentence for sentence in verdicts(paper))


def test_scaling_finds_the_exponent_and_quotes_nothing_beyond_its_reach(paper):
    series = scaling_series(paper)
    assert [one.name for one in series] == ["low-rank ReLU²", "ELAS"]
    for one in series:
        assert one.fit.law.exponent == pytest.approx(0.3, abs=0.02)
    text = " ".join(scaling_sentences(series))
    assert "3B is about 47 times larger and 7B is about 110 times larger than the largest" in text
    assert "nothing here supports a claim about 3B and 7B" in text
    assert "would come to" not in text
    assert len(scaling_table(series).rows) == 8
    assert "about 7 of 10 cases with three seeds" in " ".join(scaling_sentences(scaling_series(paper)))


def test_within_reach_a_loss_is_quoted_with_its_interval(tmp_path):
    home = write_paper(tmp_path)
    trials = tmp_path / "scaling/trials.csv"
    # the same curve at a hundred times the size: 3B lies between the sizes, 7B just beyond the largest
    trials.write_text(trials.read_text().replace("000000.0,", "00000000.0,"))
    text = " ".join(scaling_sentences(scaling_series(load_paper(home))))
    assert "low-rank ReLU² would come to 3.43 nats at 3B" in text
    assert "nothing here supports" not in text


def test_a_budget_is_one_place_though_padding_makes_its_tokens_differ_by_seed(paper, tmp_path):
    def loss(point, seed):
        return 3.0 + 1.2 * (point["budget"] / 2) ** -0.5 + 0.001 * math.sin(5 * seed + point["budget"])

    search = {
        "method": {"kind": "choices", "values": ["ELAS"], "label": "method"},
        "budget": {"kind": "choices", "values": [2, 8, 32, 128], "label": "budget"},
    }
    swept = load_sweep(write_sweep(tmp_path / "budgets", search, [], loss=loss))
    tokens = swept.trials["budget"] * 1e6 * (1 + 1e-4 * swept.trials["seed"])
    part = replace(swept, trials=swept.trials.assign(tokens=tokens))
    (series,) = scaling_series(replace(paper, parts={"budgets": part}))
    assert [sorted(by_seed) for by_seed in series.data.values()] == [[1, 2, 3]] * 4
    assert list(series.data) == pytest.approx([2.0004e6, 8.0016e6, 32.0064e6, 128.0256e6])
    assert series.fit is not None
    assert series.fit.law.exponent == pytest.approx(0.5, abs=0.02)


def test_without_enough_sizes_there_is_a_reason_and_no_fit(tmp_path):
    home = write_paper(tmp_path)
    trials = tmp_path / "scaling/trials.csv"
    header, *rows = trials.read_text().splitlines()
    trials.write_text("\n".join([header, *(row for row in rows if ",s," in row or ",m," in row)]) + "\n")
    series = scaling_series(load_paper(home))
    assert [one.fit for one in series] == [None, None]
    reason = "no curve is fitted, since three constants need 3 sizes or more, and there are 2"
    assert reason in scaling_sentences(series)[0]
    assert [row[3] for row in scaling_table(series).rows].count(NOT_RUN) == 4


def test_the_galore_protocol_is_held_against_the_same_runs(paper):
    runs = measured(paper)
    assert len(runs) == 15 + 24 + 8  # the table, the sizes, and the warm-ups that did not diverge
    for run in runs:
        assert run.batches == BATCHES
        assert run.flattery == pytest.approx(float(flattery(math.log(run.perplexity), BATCHES)))
    assert {row[1] for row in protocol_table(runs).rows} == {str(BATCHES)}
    sentences = " ".join(protocol_sentences(runs))
    assert "On 47 models of ours" in sentences
    assert "1,718 and 428 batches" in sentences


def test_the_number_of_batches_that_a_gap_needs_is_the_least():
    loss = math.log(34.12)
    for gap in (0.2, 0.8, 5.0):
        n = batches_for(loss, gap)
        assert float(flattery(loss, n)) < gap <= float(flattery(loss, n - 1))


def test_without_both_numbers_only_the_arithmetic_is_shown(tmp_path):
    runs = measured(load_paper(write_paper(tmp_path, galore=False)))
    assert runs == []
    assert "only the arithmetic" in protocol_sentences(runs)[0]


def test_every_question_has_an_answer_or_a_reason(paper):
    asked = questions(paper)
    assert [question.number for question in asked] == list(range(1, 9))
    for question in asked:
        assert question.answered or question.open, question.asked
    said = _said(paper)
    assert "5 methods have finished runs, each with at least 3 of the 3 planned seeds" in said[1]
    assert "no part of this document asks it" in said[4]
    assert "The energy dropped by the sparsity step, averaged over layers, goes from" in said[5]
    assert "did not record cosine between straight-through and exact gradient" in said[5]
    assert "No downstream task has been measured" in said[6]
    assert "20 were asked for" in said[6]
    assert "Other placements are asked by the sweep placement_ablation" in said[7]
    assert "Mixtures of experts: no part of this document asks it" in said[7]
    assert "More training tokens: no part of this document asks it" in said[6]
    assert "Nothing near 3B to 7B has been trained" in said[8]
    states = {question.number: question.state for question in asked}
    assert states[3] == "not yet"
    assert states[5] == "in part"


def test_questions_that_twins_answer(tmp_path):
    home = write_paper(tmp_path)
    summary = json.loads((home / "summary.json").read_text())
    # before the table of methods: naming twins does not make a part that table
    summary["parts"].insert(0, {"name": "pattern_ablation", "folder": "pattern_ablation"})
    (home / "summary.json").write_text(json.dumps(summary))
    assert (
        "structure costs, beside as many kept without it: the sweep pattern_ablation has not"
        in _said(load_paper(home))[4]
    )
    search = {"pattern": {"kind": "choices", "values": ["dense", "free", "2:4"], "label": "pattern"}}
    changes = {
        "loss": lambda p, s: 4.0 + 0.02 * s + {"dense": 0, "free": 0.01, "2:4": 0.03}[p["pattern"]] * (1 + 0.01 * s),
        "twins": {"2:4": "free"},
    }
    folder = write_sweep(tmp_path / "pattern_ablation", search, [], stop_after=7, **changes)
    assert "the sweep pattern_ablation has no finished pair of runs yet" in _said(load_paper(home))[4]
    shutil.rmtree(folder)
    write_sweep(folder, search, [], **changes)
    paper = load_paper(home)
    assert paper.table_name == "paper_table"
    assert "beside as many kept without it: 2:4 is 2.06" in _said(paper)[4]
    only = replace(paper, parts={"pattern_ablation": paper.parts["pattern_ablation"]})
    assert only.table_name is None


def test_columns_that_not_every_version_records_are_read(tmp_path):
    home = write_paper(tmp_path)
    for path in (tmp_path / "paper_table/runs").glob("*/telemetry.csv"):
        header, *rows = path.read_text().splitlines()
        more = [header + ",gradient_cosine,mask_drift", *(row + ",0.93,0.2" for row in rows)]
        path.write_text("\n".join(more) + "\n")
    for path in (tmp_path / "paper_table/runs").glob("*/result.json"):
        content = json.loads(path.read_text())
        account = {"weights": 4_000_000, "gradients": 4_000_000, "activations": 9_000_000}
        content["metrics"]["account"] = account
        path.write_text(json.dumps(content))
    paper = load_paper(home)
    said = _said(paper)
    assert "cosine between straight-through and exact gradient, averaged over layers, goes from 0.9300 ± 0" in said[5]
    assert "did not record" not in said[5]
    table = memory_table(paper.table)
    assert table.columns == ("Method", "Weights (MB)", "Gradients (MB)", "Activations (MB)")
    assert table.rows[0] == ("full-rank SwiGLU", "4.00", "4.00", "9.00")
    assert "The account of 5 methods" in said[3]


RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_speed_is_told_device_by_device_records_in_folders_too(tmp_path):
    home = write_paper(tmp_path)
    paper = load_paper(home, RECORDS)
    gpu, cpu = by_device(paper)
    assert "H200" in gpu
    assert "EPYC" in cpu
    said = _said(paper)[2]
    record = json.loads((RECORDS / "h200/train_step.json").read_text())
    step = record["cases"][0]["contenders"]["ELAS, hopper, recompute"]["speed_against"]["low-rank ReLU²"]
    ours = f"{step['median']:.2f} ({step['p20']:.2f} to {step['p80']:.2f}) at 1B times the speed of its dense twin"
    assert f"Training step with 16,384 tokens on {gpu}: ELAS's fastest way runs at {ours}" in said
    assert "FFN forward with 16,384 tokens, launches out of the way, on" in said
    assert "where launches bound one of the two at 60M" in said
    assert "no record from a GPU" not in said
    assert "Not measured yet" not in said


def test_what_speed_was_not_measured_of_is_said(tmp_path):
    home, results = write_paper(tmp_path), tmp_path / "results"
    results.mkdir()
    shutil.copy(RECORDS / "train_step_60m_cpu.json", results)
    (results / "old.json").write_text(json.dumps({"benchmark": "ffn", "cases": [{"shape": "60m"}]}))
    found = list(speed_answers(load_paper(home, results)))
    assert [known for known, _ in found] == [True, False, False, False]
    assert "at 60M times the speed of its dense twin" in found[0][1]
    assert "Of an earlier version, to be measured again: old.json." in found[1][1]
    assert "There is no record from a GPU" in found[2][1]
    assert found[3][1] == "Not measured yet: the speed of prefill."


def test_without_records_the_document_says_so(paper):
    ((known, sentence),) = speed_answers(paper)
    assert not known
    assert sentence.startswith("No record with ratios lies under benchmarks/results/")
    assert by_device(paper) == {}


def test_published_figures_are_verbatim_and_marked_as_published():
    assert published_perplexities("ELAS") == {"60M": 34.12, "130M": 24.8, "350M": 19.94, "1B": 15.69}
    assert published()["gap_to_dense_twin"] == {"low": 0.07, "high": 0.28}
    for entry in published()["tables"]:
        assert all(len(row) == len(entry["columns"]) for row in entry["rows"]), entry["title"]
    ((title, table),) = published_tables("warmup_ablation")
    assert "warm-up" in title
    assert table.rows[0] == ("0", "diverges", "29.70")
    assert table.caption.startswith("Published, not measured here: ELAS, arXiv 2605.03667")


def _kept(name: str, activations: int, places: tuple[tuple[int, int, str], ...]) -> list[dict]:
    return [
        {
            "shape": "1b",
            "contender": name,
            "batch": b,
            "sequence": t,
            "checkpointing": how,
            "bytes": {"activations": activations if how == "none" else 100},
        }
        for b, t, how in places
    ]


def test_whether_the_saving_survives_checkpointing_is_said_from_the_record(paper):
    assert memory_sentences(paper) == []
    assert sizes_table(paper) is None
    places = tuple((b, t, how) for b, t in ((128, 256), (8, 4096)) for how in ("none", "block"))
    kept = {"low-rank ReLU²": 1000, "low-rank ReLU², recompute": 400, "ELAS, packed": 750, "ELAS, recompute": 400}
    rows = [row for name, size in kept.items() for row in _kept(name, size, places)]
    told = replace(paper, records={"memory": {"benchmark": "memory_account", "rows": rows}})
    packed, recompute, twin = memory_sentences(told)
    assert "128 sequences of 256, ELAS with its FFN packed keeps 25 % fewer bytes" in packed
    assert "0 % fewer with every block checkpointed; with 8 sequences of 4096 it is 25 % and 0 %" in packed
    assert "60 % fewer" in recompute
    assert "60 % less, without any sparsity" in twin
    table = sizes_table(told)
    assert table is not None
    assert table.columns[2:4] == ("128 × 256", "128 × 256, checkpointed")


def test_a_divergence_is_seen_beside_the_interval_that_lies_within_the_margin(tmp_path):
    figure, caption = forest(against_twins(_changed(tmp_path, states={6: "diverged"}).table))
    names = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
    assert names == ["ELAS against low-rank ReLU² (1 diverged)", "ELAS + LORO against low- rank ReLU²"]
    assert "if no run of theirs diverged" in caption
