"""The two files that the analysis reads."""

import json
from collections.abc import Callable

from csv_rows import rows_of

from elas_lightning.result import RunResult
from elas_lightning.sweep.outcome import Outcome
from elas_lightning.sweep.plan import Plan
from elas_lightning.trials_table import METRICS


def _result(run: str, state: str = "complete", **metrics: float) -> RunResult:
    environment = {"hardware": "abacus", "command": "elas fit"}
    return RunResult(run, state, None, 0, {}, [], {}, metrics, {}, {"source": "local"}, environment, "", "")


def test_one_row_a_run_with_searched_values_and_figures(planned: Callable[..., Plan]) -> None:
    plan = planned(twins={"ELAS": "dense"})
    plan.folder.mkdir(parents=True)
    outcome = Outcome(plan, "elas sweep mine")
    outcome.add(1, plan.run({"method": "ELAS", "rank": 0.25}, 1), _result("b", val_loss=3.0, seconds=2.0))
    outcome.add(0, plan.run({"method": "dense", "rank": 0.25}, 0), _result("a", val_loss=2.0, seconds=1.0))
    outcome.write()
    rows = rows_of(plan.folder / "trials.csv")
    assert list(rows[0]) == ["trial", "seed", "state", "method", "rank", *METRICS, "run", "reason"]
    assert [(r["trial"], r["seed"], r["method"], r["rank"], r["val_loss"]) for r in rows] == [
        ("0", "0", "dense", "4", "2.0"),
        ("1", "1", "ELAS", "4", "3.0"),
    ]
    summary = json.loads((plan.folder / "summary.json").read_text())
    assert summary["runs"] == {"planned": 8, "complete": 2, "diverged": 0, "failed": 0, "pruned": 0}
    assert summary["seconds"] == 3.0
    keys = ["model.config.attention_rank", "model.config.ffn_rank"]
    assert summary["search"]["rank"] == {"kind": "choices", "values": [2, 4], "label": "rank", "keys": keys}
    assert summary["twins"] == {"ELAS": "dense"}
    assert summary["environment"] == {"hardware": "abacus"}
    assert summary["command"] == "elas sweep mine"


def test_a_run_made_again_replaces_its_row_and_a_divergence_keeps_one(planned: Callable[..., Plan]) -> None:
    plan = planned()
    plan.folder.mkdir(parents=True)
    outcome = Outcome(plan, "elas sweep mine")
    run = plan.run({"method": "ELAS", "rank": 0.25}, 0)
    outcome.add(0, run, _result("a", "failed"))
    outcome.add(0, run, _result("a", val_loss=2.0))
    outcome.add(1, plan.run({"method": "dense", "rank": 0.25}, 0), _result("b", "diverged"))
    outcome.write()
    assert [(row["run"], row["state"], row["val_loss"]) for row in rows_of(plan.folder / "trials.csv")] == [
        ("a", "complete", "2.0"),
        ("b", "diverged", ""),
    ]
    assert outcome.counts == {"complete": 1, "diverged": 1, "failed": 0, "pruned": 0}
