"""What the documentation shows of stored sweeps and benchmark records."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mkdocs.structure.files import Files
from synthetic import METHODS, rank_sweep, write_sweep

from elas_lightning.analysis.plots import write_plots
from elas_lightning.analysis.report import write_report
from elas_lightning.errors import UserError

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    module = _load("gallery")
    monkeypatch.setattr(module, "STORED", tmp_path / "results")
    monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    (tmp_path / "records").mkdir()
    return module


def _page(gallery):
    return gallery.on_page_markdown("# Results", page=SimpleNamespace(file=SimpleNamespace(src_uri="gallery.md")))


def _sweep(tmp_path):
    plots = [{"kind": "metric_by", "x": "rank", "series": "method", "log_x": True}]
    folder = rank_sweep(tmp_path / "runs" / "rank_ablation", plots=plots)
    write_plots(folder)
    write_report(folder)
    return folder


def test_without_records_the_page_says_so(gallery):
    page = _page(gallery)
    assert "No sweep is stored yet." in page
    assert "No benchmark is stored yet." in page


def test_other_pages_are_left_alone(gallery):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    assert gallery.on_page_markdown("# Home", page=page) == "# Home"


def test_a_stored_sweep_is_shown_with_its_figures_and_tables(gallery, tmp_path):
    source = _sweep(tmp_path)
    stored = _load("store").store(source, tmp_path / "results" / "rank_ablation")
    assert not list(stored.rglob("*.png"))
    page = _page(gallery)
    summary = json.loads((source / "summary.json").read_text())
    assert summary["question"] in page
    assert summary["command"] in page
    for figure in json.loads((source / "plots" / "captions.json").read_text())["figures"]:
        assert f"(assets/results/rank_ablation/{figure['name']}.svg)" in page
        assert figure["caption"] in page
    assert page.count("<details") == len(list((source / "tables").glob("*.md"))) > 0
    plugins = SimpleNamespace(_current_plugin="docs/gallery.py")  # as while MkDocs calls a hook
    config = SimpleNamespace(site_dir=str(tmp_path / "site"), use_directory_urls=False, plugins=plugins)
    taken = [file.src_uri for file in gallery.on_files(Files([]), config)]
    assert taken == [f"assets/results/rank_ablation/{p.name}" for p in sorted(stored.glob("plots/*.svg"))]


def test_sweeps_stand_in_the_papers_order_and_show_means_and_differences(gallery, tmp_path):
    plots = [
        {"kind": "metric_by", "x": "rank", "series": "method"},
        {"kind": "curves", "series": "method"},
        {"kind": "differences", "x": "method"},
    ]
    for name in ("zoology", "backward_ablation", "paper_table"):
        folder = rank_sweep(tmp_path / "runs" / name, plots=plots)
        write_plots(folder)
        write_report(folder)
        _load("store").store(folder, tmp_path / "results" / name)
    page = _page(gallery)
    places = [page.index(f"assets/results/{name}/") for name in ("paper_table", "backward_ablation", "zoology")]
    assert places == sorted(places)
    assert page.count("Figures: 1 more") == 3
    for name in ("paper_table", "backward_ablation", "zoology"):
        more = page.index("Figures: 1 more", page.index(f"{name}/metric_by_rank_method"))
        assert page.index(f"{name}/differences_method") < more < page.index(f"{name}/curves_method")


def test_what_the_step_costs_in_all_stored_sweeps_comes_first(gallery, tmp_path):
    search = {"method": {**METHODS, "values": ["dense", "2:4"]}}
    folder = write_sweep(tmp_path / "runs" / "zoology", search, [{"kind": "bars", "x": "method"}])
    write_report(folder)
    _load("store").store(folder, tmp_path / "results" / "zoology")
    page = _page(gallery)
    assert page.index("assets/results/cost_of_24.svg") < page.index("assets/results/zoology")
    assert "*What the 2:4 step costs in 1 comparison with" in page
    plugins = SimpleNamespace(_current_plugin="docs/gallery.py")
    config = SimpleNamespace(site_dir=str(tmp_path / "site"), use_directory_urls=False, plugins=plugins)
    assert "assets/results/cost_of_24.svg" in [file.src_uri for file in gallery.on_files(Files([]), config)]
    picture = tmp_path / "cost.png"
    _load("store").draw_cost(tmp_path / "results", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_device_has_one_figure_and_one_table_of_all_its_records(gallery, tmp_path):
    for record in (DOCS.parent / "benchmarks" / "results" / "h200").glob("*.json"):
        (tmp_path / "records" / record.name).write_text(record.read_text())
    page = _page(gallery)
    picture = "assets/benchmarks/nvidia_h200.svg"
    assert page.count("### NVIDIA H200: ELAS beside its dense twin") == page.count(f"({picture})") == 1
    speed = json.loads((DOCS.parent / "benchmarks" / "results" / "h200" / "prefill.json").read_text())["cases"][1]
    best = max(
        row["speed_against"]["low-rank ReLU²"]["median"]
        for row in speed["measured"]
        if row["contender"].startswith("ELAS")
    )
    assert f"{best:.2f}" in page
    plugins = SimpleNamespace(_current_plugin="docs/gallery.py")
    config = SimpleNamespace(site_dir=str(tmp_path / "site"), use_directory_urls=False, plugins=plugins)
    (made,) = gallery.on_files(Files([]), config)
    assert made.src_uri == picture
    assert b"<svg" in made.content_bytes


def test_storing_again_leaves_nothing_of_before(tmp_path):
    source, target = _sweep(tmp_path), tmp_path / "results" / "rank_ablation"
    (target / "plots").mkdir(parents=True)
    (target / "plots" / "old.svg").touch()
    _load("store").store(source, target)
    assert not (target / "plots" / "old.svg").exists()


def test_a_sweep_without_results_is_not_stored(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json: run the sweep"):
        _load("store").store(tmp_path / "runs" / "none", tmp_path / "results" / "none")
    assert not (tmp_path / "results").exists()


def test_a_record_of_an_earlier_format_is_named_and_not_shown(gallery, tmp_path):
    record = {"benchmark": "train_step", "command": "python benchmarks/train_step.py", "device": "a CPU"}
    (tmp_path / "records" / "old.json").write_text(json.dumps(record))
    page = _page(gallery)
    assert "`python benchmarks/train_step.py` on a CPU." in page
    assert "earlier format" in page


def test_what_is_no_name_is_said_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["store", "rank_ablation", "--size", "a/b"])
    assert _load("store").main() == 2
    assert capsys.readouterr().err == ("error: --size 'a/b' is no name: give that of a file in experiments/sizes\n")
