"""Tables: numbers against pandas, corrections, escaping."""

from __future__ import annotations

import pandas as pd
from scipy import stats
from synthetic import METHODS, rank_sweep, write_sweep

from elas_lightning.analysis.comparisons import comparisons, twin_comparisons
from elas_lightning.analysis.load import load_sweep
from elas_lightning.analysis.statistics import holm
from elas_lightning.analysis.tables import Table, comparison_table, p_text, results_table, write_tables


def test_results_are_the_means_of_trials_csv(rank_ablation):
    table = results_table(load_sweep(rank_ablation))
    assert len(table.rows) == 8
    trials = pd.read_csv(rank_ablation / "trials.csv")
    values = trials[(trials["rank"] == 32) & (trials["method"] == "elas")]["val_perplexity"]
    half = stats.t.ppf(0.975, 2) * values.std() / 3**0.5
    (row,) = [row for row in table.rows if row[:2] == ("32", "elas")]
    assert row[2] == f"{values.mean():.1f} ± {half:.1f}"
    assert row[4:6] == ("3", "0")
    assert row[7] == "1.28"  # million parameters of the generator at rank 32


def test_lost_runs_stay_visible(tmp_path):
    folder = rank_sweep(
        tmp_path / "lost", states={0: "diverged", 1: "failed", 3: "diverged", 4: "diverged", 5: "diverged"}
    )
    rows = {row[:2]: row for row in results_table(load_sweep(folder)).rows}
    assert rows["4", "lowrank"][4:6] == ("1", "1 diverged, 1 failed")
    assert rows["4", "elas"][2:6] == ("none", "none", "0", "3 diverged")
    assert rows["4", "elas"][-1] == "not measured"


def test_comparison_table_corrects_for_its_own_size(rank_ablation):
    table = comparison_table(load_sweep(rank_ablation))
    assert table.columns[-3:] == ("p", "p (Holm)", "Reading")
    assert "the number of tests in this table, 4 (Holm)" in table.caption
    tests = [found.difference.p for found in comparisons(load_sweep(rank_ablation))]
    # the step-down by hand: the smallest times 4, the next times 3, never below the one before
    by_hand, least = {}, 0.0
    for times, p in zip((4, 3, 2, 1), sorted(tests), strict=True):
        least = by_hand[p] = max(least, min(1.0, times * p))
    assert [row[-3] for row in table.rows] == [p_text(p) for p in tests]
    assert [row[-2] for row in table.rows] == [p_text(by_hand[p]) for p in tests]
    assert [row[-2] for row in table.rows] != [row[-3] for row in table.rows]
    assert {row[-1] for row in table.rows} <= {"above", "above, but not after correction"}


def test_one_seed_is_not_tested(tmp_path):
    table = comparison_table(load_sweep(rank_sweep(tmp_path / "single", seeds=[7])))
    assert {row[-1] for row in table.rows} == {"one seed: no test"}
    assert {row[4] for row in table.rows} == {"none"}


def test_no_difference_reads_as_not_found(tmp_path):
    folder = write_sweep(
        tmp_path / "same", {"method": METHODS}, [], loss=lambda p, s: 5.0 + 0.01 * ((s * 7 + len(p["method"])) % 3)
    )
    (row,) = comparison_table(load_sweep(folder)).rows
    assert row[-1] == "not found"
    assert row[0] == "all runs"


def test_unshared_seeds_are_not_compared(tmp_path):
    states = {0: "diverged", 2: "diverged", 4: "diverged"}  # lowrank keeps seed 2, elas keeps 1 and 3
    folder = write_sweep(tmp_path / "apart", {"method": METHODS}, [], loss=lambda p, s: 5.0, states=states)
    (row,) = comparison_table(load_sweep(folder)).rows
    assert row[-1] == "not comparable"


def test_twins_come_first_and_are_corrected_by_themselves(twinned):
    results = load_sweep(twinned)
    table = comparison_table(results)
    assert "the number of tests, 4 against twins (the first rows) and 4 others, each family by itself" in table.caption
    for family, rows in ((twin_comparisons, table.rows[:4]), (comparisons, table.rows[4:])):
        tests = [found.difference.p for found in family(results)]
        assert [row[-3] for row in rows] == [p_text(p) for p in tests]
        assert [row[-2] for row in rows] == [p_text(p) for p in holm(tests)]


def test_a_twin_that_has_not_run_makes_no_table(tmp_path):
    twins = {"elas": "lowrank"}
    folder = write_sweep(tmp_path / "some", {"method": METHODS}, [], loss=lambda p, s: 5.0, stop_after=3, twins=twins)
    assert comparison_table(load_sweep(folder)) is None


def test_no_table_where_nothing_is_compared(tmp_path):
    search = {"lr": {"kind": "range", "low": 1e-4, "high": 1e-1, "log": True, "label": "learning rate"}}
    points = [{"lr": 0.001}, {"lr": 0.01}]
    folder = write_sweep(tmp_path / "range", search, [], points=points, loss=lambda p, s: 5.0)
    assert comparison_table(load_sweep(folder)) is None
    assert [path.name for path in write_tables(folder)] == ["results.md", "results.html"]


def test_written_tables(rank_ablation):
    paths = write_tables(rank_ablation)
    assert [path.name for path in paths] == ["results.md", "results.html", "comparisons.md", "comparisons.html"]
    header, rule, *rows = paths[0].read_text().splitlines()
    assert header.count("|") == rule.count("|") == rows[0].count("|")


def test_cells_are_escaped():
    table = Table("a < b", ("x|y", "<b>"), (("<script>", "1|2"),), 1)
    assert "<script>" not in table.html()
    assert "&lt;script&gt;" in table.html()
    assert "a &lt; b" in table.html()
    assert "x\\|y" in table.markdown()
    assert "1\\|2" in table.markdown()


def test_names_with_markup_are_read_as_they_are_in_markdown():
    names = ("*bold*", "<i>", "$5 or $6", "_w_", "a|b", "back\\slash", "&amp;")
    text = Table("", ("name",), tuple((name,) for name in names), 1).markdown()
    shown = ["\\*bold\\*", "\\<i>", "\\$5 or \\$6", "\\_w\\_", "a\\|b", "back\\\\slash", "\\&amp;"]
    assert [line[2:-2] for line in text.splitlines()[2:9]] == shown
    plain = Table("", ("val_loss",), (("<0.001",), ("a & b",), ("2:4",)), 1).markdown()
    assert "\\" not in plain
