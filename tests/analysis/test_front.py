"""The front as a table: who is on it, in which order, and what it says of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic import rank_sweep

from elas_lightning.analysis.front import front_table
from elas_lightning.analysis.load import SweepResults, load_sweep


def swept(folder: Path, objectives: list[str], **changes: object) -> SweepResults:
    """Four ranks by two methods; ELAS is a little worse everywhere, and a larger rank has more parameters."""
    rank_sweep(folder, **changes)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "objectives": objectives}))
    return load_sweep(folder)


@pytest.mark.parametrize("objectives", [[], ["val_perplexity"]])
def test_one_objective_has_no_front(tmp_path: Path, objectives: list[str]) -> None:
    assert front_table(swept(tmp_path / "a", objectives)) is None


def test_who_is_on_it_the_best_in_the_first_objective_first(tmp_path: Path) -> None:
    table = front_table(swept(tmp_path / "a", ["val_perplexity", "parameters"]))
    assert table is not None
    assert [row[:2] for row in table.rows] == [(rank, "lowrank") for rank in ("32", "16", "8", "4")]
    assert table.rows[0][2].startswith("163.5 ± ")
    assert table.columns[2:] == ("Validation perplexity, lower is better", "Parameters (millions), lower is better")
    assert table.caption.startswith("On the front: 4 of 8 points. ")
    turned = front_table(swept(tmp_path / "b", ["parameters", "val_perplexity"]))
    assert turned is not None
    assert [row[0] for row in turned.rows] == ["4", "8", "16", "32"]


def test_of_some_figures_more_is_better(tmp_path: Path) -> None:
    table = front_table(swept(tmp_path / "a", ["val_perplexity", "tokens_per_second"]))
    assert table is not None  # all are equally fast
    assert [row[:2] for row in table.rows] == [("32", "lowrank")]
    assert table.columns[-1].endswith("higher is better")
    # now the smaller ranks are the faster ones
    trials = pd.read_csv(tmp_path / "a/trials.csv")
    trials.assign(tokens_per_second=1e6 / trials["rank"]).to_csv(tmp_path / "a/trials.csv", index=False)
    table = front_table(load_sweep(tmp_path / "a"))
    assert table is not None
    assert [row[:2] for row in table.rows] == [(rank, "lowrank") for rank in ("32", "16", "8", "4")]


def test_a_point_without_a_finished_run_is_not_on_it(tmp_path: Path) -> None:
    diverged = dict.fromkeys(range(18, 21), "diverged")  # rank 32, lowrank
    table = front_table(swept(tmp_path / "a", ["val_perplexity", "parameters"], states=diverged))
    assert table is not None
    assert ("32", "lowrank") not in [row[:2] for row in table.rows]
    assert "of 7 points" in table.caption


def test_a_point_with_a_diverged_seed_is_not_on_it(tmp_path: Path) -> None:
    """Two lucky seeds of three, and the best mean: in the study the point is the worst there is."""
    table = front_table(
        swept(tmp_path / "a", ["val_perplexity", "parameters"], states={18: "diverged"})  # rank 32, lowrank
    )
    assert table is not None
    assert ("32", "lowrank") not in [row[:2] for row in table.rows]
    assert table.caption.startswith("On the front: 4 of 7 points. ")
    assert table.caption.endswith("1 point with a diverged run cannot be on it.")


def test_points_that_diverged_with_every_seed_are_counted_too(tmp_path: Path) -> None:
    states = dict.fromkeys([3, *range(18, 21)], "diverged")
    table = front_table(swept(tmp_path / "a", ["val_perplexity", "parameters"], states=states))
    assert table is not None
    assert "of 6 points" in table.caption
    assert table.caption.endswith("2 points with a diverged run cannot be on it.")
