"""The report: complete, self-contained, deterministic, and honest about what is missing."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest
from synthetic import METHODS, RANK_PLOTS, RANKS, rank_sweep, write_sweep

from elas_lightning.analysis.answer import answer
from elas_lightning.analysis.load import load_sweep
from elas_lightning.analysis.report import write_report
from elas_lightning.errors import UserError


class Page(HTMLParser):
    """Collects what the tests ask about a page."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.resources, self.tags = [], [], [], []
        self.text = ""
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append([tag, ""])
        if tag == "img":
            self.images.append(named)
        self.resources += [named[key] for key in ("src", "href", "srcset", "action", "data", "poster") if key in named]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data
            assert "@import" not in data
            return
        self.text += " " + " ".join(data.split())
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1][1] += data

    @property
    def titles(self):
        return [text for _, text in self.headings]


def read(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of a complete sweep with its report."""
    folder = rank_sweep(tmp_path_factory.mktemp("reported") / "rank_ablation")
    write_report(folder)
    return folder


@pytest.fixture
def page(reported):
    return Page((reported / "report.html").read_text(encoding="utf-8"))


def test_every_figure_with_its_sentence(page, reported):
    captions = json.loads((reported / "plots" / "captions.json").read_text())["figures"]
    assert len(page.images) == len(captions) == 3
    for image, figure in zip(page.images, captions, strict=True):
        assert image["alt"] == figure["caption"]
        assert page.text.count(figure["caption"]) >= 1
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(data) == (reported / "plots" / f"{figure['name']}.svg").read_bytes()


def test_the_tables_are_written_beside_the_page(reported):
    written = {path.name for path in (reported / "tables").iterdir()}
    assert written == {f"{name}{suffix}" for name in ("results", "comparisons") for suffix in (".md", ".html")}


def test_the_page_asks_for_nothing_and_runs_nothing(page):
    assert all(resource.startswith("data:") for resource in page.resources)
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    assert not page.open


def test_headings_descend_and_name_every_part(page, reported):
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.titles[0] == load_sweep(reported).summary["question"]
    for part in (
        "Answer",
        "Figures",
        "Results by setting",
        "Comparisons paired by seed",
        "Divergences and failures",
        "Limits",
        "What ran, and on what",
        "How to run it again",
    ):
        assert part in page.titles
    assert "What is missing" not in page.titles


def test_many_comparisons_are_counted_after_correction_too(tmp_path):
    """Twelve methods that do not differ: one's p is a little below 5 %, which of eleven says nothing."""

    def loss(point, seed):
        own = 0.0 if point["m"] == "m0" else 0.001 * (1 + int(point["m"][1:])) * (-1) ** seed
        lucky = 0.004 if point["m"] == "m1" else 0.0
        return 4.0 + 0.02 * seed + own + lucky

    search = {"m": {"kind": "choices", "values": [f"m{i}" for i in range(12)], "label": "m"}}
    text = read(write_sweep(tmp_path / "many", search, [], loss=loss, seeds=(1, 2, 3, 4))).text
    assert "Of 11 comparisons paired by seed, 1 has a 95 % interval without zero (0 after correction" in text
    assert re.search(r"for all 11, Holm\): m1 is 0\.4\d? % above m0; for the others no difference was found", text)


def test_no_difference_anywhere_is_no_matter_of_others(tmp_path):
    def loss(point, seed):
        return 4.0 + 0.02 * seed + {"a": 0, "b": 0.001, "c": 0.002}[point["m"]] * (-1) ** seed

    search = {"m": {"kind": "choices", "values": ["a", "b", "c"], "label": "m"}}
    text = read(write_sweep(tmp_path / "none", search, [], loss=loss, seeds=(1, 2, 3, 4))).text
    assert "Of 2 comparisons paired by seed, none has a 95 % interval without zero; no difference was found" in text


def test_twins_have_a_sentence_of_their_own(tmp_path):
    def loss(point, seed):
        return 4.0 + 0.02 * seed + {"a": 0, "b": 0.001, "c": 0.05, "d": 0.052}[point["m"]] * (1 + 0.01 * seed)

    search = {"m": {"kind": "choices", "values": ["a", "b", "c", "d"], "label": "m"}}
    text = read(write_sweep(tmp_path / "two", search, [], loss=loss, twins={"c": "b", "d": "c"})).text
    said = "Both comparisons of a choice with the twin that the sweep names for it have a 95 % interval without zero: "
    assert said in text
    assert re.search(
        r"zero: c is 5\.\d+ % above b and d is 0\.2\d* % above c\.\s+All 3 comparisons paired by seed", text
    )
    text = read(write_sweep(tmp_path / "one", search, [], loss=loss, twins={"d": "c"})).text
    assert re.search(r"D is 0\.2\d* % \(95 % interval 0\.\d+ to 0\.\d+\) above c, paired over 3 seeds\.\s+All 3", text)


def test_what_did_not_finish_is_no_part_of_what_is_counted(tmp_path):
    lost = {1: "failed", 2: "failed", 3: "pruned", 9: "diverged", 10: "diverged", 11: "diverged"}
    text = read(rank_sweep(tmp_path / "lost", plots=RANK_PLOTS[:1], states=lost)).text
    assert "The best of 7 settings that finished reaches" in text
    assert "of 24 runs shown, 3 diverged, 2 failed and 1 pruned: these" in text
    assert "Both comparisons paired by seed" in text
    assert "Intervals rest on 2 to 3 seeds" in text
    text = read(rank_sweep(tmp_path / "single", plots=RANK_PLOTS[:1], seeds=[1])).text
    assert "Differences in validation perplexity, paired by seed." in text  # and no p, of which there is none


def test_the_best_point_is_told_once(reported):
    figures = [{"kind": kind, "caption": f"What {kind} finds."} for kind in ("parallel", "importance", "pareto")]
    first, second, *_ = answer(load_sweep(reported), figures)
    assert first == "What importance finds."
    assert second.startswith("The best of 8 settings tried reaches")


def test_answer_facts_and_limits_come_from_the_data(page):
    text = page.text
    assert "Validation perplexity of elas falls from" in text
    assert "against 471 for guessing by token frequency alone" in text
    assert "All 24 planned runs completed." in text
    assert (
        "All 4 comparisons paired by seed have a 95 % interval without zero (0 after correction for all 4, Holm)."
        in text
    )
    assert "0.638 to 0.864 training tokens per parameter, less than the 20 usual" in text
    assert "Intervals rest on 3 seeds" in text
    assert "The learning rate was not searched" in text
    assert "None: every run that finished completed." in text
    for fact in (
        "make sweep EXP=rank_ablation",
        "2-core CPU, 8 GB",
        "torch 2.13.0",
        "fingerprint 1f2e3d4c5b6a",
        "byte-bpe-2048",
        "819,200 a run",
        "reference (no CUDA device): 24 runs",
        "elas fit --seed_everything=3",
        "2026-05-01 10:00 UTC",
    ):
        assert fact in text, fact


def test_a_sweep_of_nothing_but_divergences_measured_its_memory(tmp_path):
    rate = {"kind": "choices", "values": [1.0, 2.0], "label": "rate", "keys": ["model.optimizer.lr"]}
    diverged = dict.fromkeys(range(2), "diverged")
    sweep = write_sweep(tmp_path / "lost", {"rate": rate}, [], seeds=(0,), loss=lambda *_: 9.0, states=diverged)
    text = read(sweep).text
    assert "No run has come to a validation perplexity" in text
    assert "0 of 2 planned runs completed; 2 diverged." in text
    assert "Peak memory was not measured" not in text
    assert "The learning rate was not searched" not in text


def test_unfinished_sweep_with_losses(tmp_path):
    plots = [{"kind": "metric_by", "x": "rank", "series": "method"}, {"kind": "importance"}]
    folder = rank_sweep(tmp_path / "lossy", plots=plots, states={0: "diverged", 4: "failed"}, stop_after=20)
    page = read(folder)
    assert "What is missing" in page.titles
    assert "4 of 24 planned runs have not finished." in page.text
    assert "18 of 24 planned runs completed; 1 diverged, 1 failed and 4 not finished." in page.text
    assert "loss became nan at step 140" in page.text
    assert "000-seed1" in page.text
    assert "Asked for but not drawn:" in page.text
    assert "the study estimated no importances" in page.text


def test_why_a_run_on_another_machine_failed_is_known_from_the_table(tmp_path):
    folder = rank_sweep(tmp_path / "elsewhere", plots=[], states={0: "failed"})
    table = pd.read_csv(folder / "trials.csv", dtype=str)
    table.loc[0, "reason"] = "out of memory"
    table.to_csv(folder / "trials.csv", index=False)
    shutil.rmtree(folder / "runs" / "000-seed1")
    text = read(folder).text
    assert "out of memory" in text
    assert "Of unknown hardware and versions, for want of a result.json: 000-seed1." in text


@pytest.mark.parametrize("stop_after", [0, 2])
def test_nothing_finished_yet(tmp_path, stop_after):
    folder = rank_sweep(tmp_path / "none", states=dict.fromkeys(range(2), "failed"), stop_after=stop_after)
    page = read(folder)
    assert "No run has come to a validation perplexity, so there is no answer yet." in page.text
    assert f"0 of 24 planned runs completed; {f'{stop_after} failed and ' if stop_after else ''}" in page.text
    assert "No figure could be drawn." in page.text
    assert page.images == []


def test_one_point_and_one_seed(tmp_path):
    search = {"rank": {**RANKS, "values": [8]}}
    folder = write_sweep(tmp_path / "one", search, [{"kind": "metric_by", "x": "rank"}, {"kind": "curves"}], seeds=[1])
    page = read(folder)
    assert len(page.images) == 2
    assert "Comparisons paired by seed" not in page.titles
    assert "There is one seed" in page.text
    assert "The one setting tried reaches" in page.text
    assert "±" not in page.text.split("Results by setting")[0]


def test_worse_than_the_baseline_is_said(tmp_path):
    folder = write_sweep(tmp_path / "bad", {"method": METHODS}, [], loss=lambda p, s: 7.0 + 0.01 * s)
    assert "no better than the 471 of guessing by token frequency alone" in read(folder).text


def test_same_results_same_page(reported):
    before = (reported / "report.html").read_bytes()
    assert write_report(reported).read_bytes() == before


def test_words_from_the_files_are_escaped(tmp_path):
    page = read(rank_sweep(tmp_path / "words", plots=[], question="Is a < b & <script>alert(1)</script>?"))
    assert "script" not in page.tags
    assert page.titles[0] == "Is a < b & <script>alert(1)</script>?"


def test_missing_sweep_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="run `make sweep EXP=nothing` first"):
        write_report(tmp_path / "nothing")
