"""The page about the paper: one silent file, every section there, whatever is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from synthetic_paper import write_paper
from test_report import Page

from elas_lightning.analysis.paper.load import is_paper
from elas_lightning.analysis.paper.report import write_paper_plots, write_paper_report
from elas_lightning.analysis.parameters import lower_first
from elas_lightning.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_paper(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def text(home):
    return write_paper_report(home).read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_and_its_links_lead_somewhere(text):
    page = Page(text)
    assert not page.open
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    links = {resource for resource in page.resources if not resource.startswith("data:")}
    assert {link.removeprefix("#") for link in links} <= set(re.findall(r' id="([^"]+)"', text))
    assert {"#part-warmup_ablation", "#protocol", "#scaling", "#speed"} <= links


def test_every_section_is_there(home, text):
    page = Page(text)
    for title in (
        "Answer",
        "Still missing from this document",
        "The table of methods",
        "What the referees asked",
        "How long a warm-up?",
        "How perplexity is measured",
        "Speed",
        "Memory",
        "Downstream tasks",
        "Divergences and failures",
    ):
        assert title in page.titles
    # bars, telemetry, warm-ups and sizes; cost, equivalence, scaling and protocol
    assert len(page.images) == 8
    assert "What 2:4 costs, wherever it was asked" in page.titles
    assert "The paper's dense warm-up (published)" in page.titles
    assert "placement_ablation: " in page.text
    assert "loss became nan at step" in page.text
    # what the part's figure says, drawn by this very call, answers a question
    drawn = json.loads((home.parent / "warmup_ablation/plots/captions.json").read_text())["figures"]
    assert f"Dense warm-up: {lower_first(drawn[0]['caption'])}" in page.text


def test_same_results_same_page(home, text):
    assert write_paper_report(home).read_text(encoding="utf-8") == text


def test_plots_of_parts_and_document_are_redrawn(home):
    written = write_paper_plots(home)
    own = {path.stem for path in written if path.parent == home / "plots"}
    assert own == {"cost", "equivalence", "protocol", "scaling"}
    assert any(path.parent == home.parent / "warmup_ablation/plots" for path in written)


def _bare(tmp_path):
    home = tmp_path / "paper"
    home.mkdir()
    parts = [{"name": "paper_table", "folder": "paper_table"}]
    summary = {"name": "paper", "question": "Why?", "command": "elas sweep paper", "parts": parts}
    (home / "summary.json").write_text(json.dumps(summary))
    return home


def test_downstream_results_come_in_from_their_folder(tmp_path):
    home = _bare(tmp_path)
    folder = home / "evaluations"
    folder.mkdir()
    found = {"results": {"arc_easy": {"acc,none": 0.31, "acc_stderr,none": 0.01, "alias": "arc_easy"}}}
    (folder / "elas.json").write_text(json.dumps({"tasks": {"2:4": found}}))
    text = write_paper_report(home).read_text(encoding="utf-8")
    assert "zero-shot tasks arc_easy" in text
    assert "0.3100" in text
    assert "No downstream task has been measured" not in text


def test_nothing_run_yet_is_a_page_too(tmp_path):
    text = write_paper_report(_bare(tmp_path)).read_text()
    assert "No table of methods has been run, so there is no answer yet." in text
    assert "None: every run that finished completed." in text


def test_composites_are_told_from_sweeps_and_broken_files_are_one_line(tmp_path):
    home = _bare(tmp_path)
    assert is_paper(home)
    assert not is_paper(tmp_path)
    (home / "summary.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        is_paper(home)


def test_speed_of_a_gpu_has_a_figure_and_a_table(tmp_path):
    records = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    page = Page(write_paper_report(write_paper(tmp_path), records).read_text(encoding="utf-8"))
    captions = [image["alt"] for image in page.images if "beside its dense twin" in image["alt"]]
    (caption,) = captions  # the CPU's one bar is a number
    assert caption.startswith("NVIDIA H200")
    assert "2.09 hopper" in page.text
    assert "1.00 reference" in page.text
