"""Real sweeps of seconds: nothing runs twice, nothing is lost, a run that dies is a row."""

import io
import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import making
import optuna
import pytest
import yaml
from csv_rows import rows_of
from making import Started
from rich.console import Console

from elas_lightning.errors import UserError
from elas_lightning.result import RunResult
from elas_lightning.sweep.run import Request, open_study, run_sweep
from elas_lightning.training.interruption import Interrupted

QUICK = {"trainer.max_steps": 6, "trainer.val_check_interval": 3}


def _sweep(name: str = "grid") -> str:
    console = Console(file=io.StringIO(), width=200)
    run_sweep(Request(name, overrides=QUICK), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _rows(name: str = "grid") -> list[dict[str, str]]:
    return rows_of(Path(f"runs/{name}/trials.csv"))


def _write_sweep(project: Path, name: str, **changes: Any) -> None:
    content = yaml.safe_load((project / "sweeps/grid.yaml").read_text())
    (project / f"sweeps/{name}.yaml").write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))


def test_a_grid_runs_every_point_with_every_seed(project: Path, started: Started) -> None:
    text = _sweep()
    rows = _rows()
    assert len(started) == len(set(started)) == len(rows) == 8
    assert {(r["method"], r["rank"], r["seed"]) for r in rows} == {
        (method, rank, seed) for method in ("dense", "ELAS") for rank in ("2", "4") for seed in ("0", "1")
    }
    assert {r["state"] for r in rows} == {"complete"}
    assert all(float(r["val_perplexity"]) > 1 for r in rows)
    assert "[8/8]" in text


def test_a_finished_sweep_runs_nothing_again(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.finish)
    _sweep()
    before = Path("runs/grid/trials.csv").read_text()
    started.clear()
    text = _sweep()
    assert started == []
    assert "8 of 8 runs are there from before" in text
    assert Path("runs/grid/trials.csv").read_text() == before


def test_a_stopped_sweep_goes_on_with_the_run_it_was_in(project: Path, started: Started) -> None:
    _write_sweep(project, "grid", seeds=[0])
    _sweep()
    whole = {r["run"]: r["val_loss"] for r in _rows()}
    Path("runs/grid").rename("runs/unbroken")
    started.clear()
    stop = partial(making.stop_the_worker, worker=os.getpid(), step=4)
    started.make_with(lambda request: stop if len(started) == 2 else None)
    with pytest.raises(Interrupted):
        _sweep()
    assert len(_rows()) == 1
    stopped = started[-1]
    assert (Path("runs/grid/runs") / stopped / "checkpoints/last.ckpt").exists()
    started.make_with(lambda request: None)
    text = _sweep()
    assert "1 of 4 runs are there from before" in text
    # the second is taken up, and every other run is made exactly once
    assert started[2] == stopped
    assert sorted(started) == sorted([*whole, stopped])
    assert {r["run"]: r["val_loss"] for r in _rows()} == whole


def test_a_longer_sweep_runs_only_what_is_new(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.finish)
    _sweep()
    started.clear()
    _write_sweep(project, "grid", seeds=[0, 1, 2])
    _sweep()
    assert len(started) == 4
    assert all("seed-2" in name for name in started)
    assert len(_rows()) == 12


def test_a_run_that_dies_is_a_row_with_its_reason_and_is_tried_again(project: Path, started: Started) -> None:
    started.make_with(
        lambda request: making.run_out_of_memory if "dense_rank-4_seed-1" in request.directory.name else making.finish
    )
    _sweep()
    failed = [r for r in _rows() if r["state"] == "failed"]
    assert [(r["method"], r["rank"], r["seed"]) for r in failed] == [("dense", "4", "1")]
    directory = Path("runs/grid/runs") / failed[0]["run"]
    assert RunResult.read(directory).reason == "MemoryError: no more"
    assert "MemoryError" in (directory / "traceback.txt").read_text()
    assert failed[0]["reason"] == "MemoryError: no more"
    assert json.loads(Path("runs/grid/summary.json").read_text())["runs"]["failed"] == 1
    started.make_with(lambda request: making.finish)
    _sweep()
    assert [r["state"] for r in _rows()] == ["complete"] * 8


def test_a_divergence_is_kept_and_the_sweep_goes_on(project: Path) -> None:
    rates = {"lr": {"keys": ["model.optimizer.lr"], "choices": [0.01, 1e30]}}
    _write_sweep(project, "rates", search=rates, seeds=[0], plots=[])
    _sweep("rates")
    assert [r["state"] for r in _rows("rates")] == ["complete", "diverged"]
    _sweep("rates")
    assert [r["state"] for r in _rows("rates")] == ["complete", "diverged"]


def test_a_search_draws_its_trials_and_resumes(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.finish)
    search = {
        "lr": {"keys": ["model.optimizer.lr"], "low": 1e-4, "high": 0.1, "log": True},
        "rank": {"keys": ["model.config.ffn_rank"], "choices": [2, 4]},
    }
    fields = {"search": search, "seeds": [0], "sampler": "tpe", "plots": []}
    _write_sweep(project, "search", **fields, trials=4)
    _sweep("search")
    first = [r["lr"] for r in _rows("search")]
    assert len(set(first)) == len(started) == 4
    _write_sweep(project, "search", **fields, trials=6)
    _sweep("search")
    assert len(started) == 6
    assert [r["lr"] for r in _rows("search")][:4] == first
    assert json.loads(Path("runs/search/summary.json").read_text())["importances"] is None  # of six points


def test_the_pruner_ends_a_hopeless_point_and_says_so(project: Path) -> None:
    rates = {"lr": {"keys": ["model.optimizer.lr"], "choices": [0.02, 0.03, 0.01, 0.015, 1e-9]}}
    _write_sweep(project, "pruned", search=rates, seeds=[0], sampler="grid", pruner="median", plots=[])
    _sweep("pruned")
    rows = {r["lr"]: r["state"] for r in _rows("pruned")}
    assert rows["1e-09"] == "pruned"
    pruned = next(r for r in _rows("pruned") if r["state"] == "pruned")
    reason = RunResult.read(Path("runs/pruned/runs") / pruned["run"]).reason
    assert reason == "above the median of earlier trials at step 3"


def test_a_sweep_that_cannot_be_run_leaves_nothing(project: Path, planned: Callable[..., Any]) -> None:
    _write_sweep(project, "bad", search={"rank": {"keys": ["model.config.ffn_rank"], "choices": [99]}}, plots=[])
    with pytest.raises(UserError, match="ffn_rank"):
        _sweep("bad")
    assert not Path("runs/bad").exists()


def test_a_point_that_is_drawn_twice_leaves_nothing_missing(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.finish)
    rank = {"rank": {"keys": ["model.config.ffn_rank"], "choices": [2, 4]}}
    _write_sweep(project, "few", search=rank, sampler="random", trials=5, plots=[])
    request = Request("few")
    assert run_sweep(request, Console(file=io.StringIO())) == 0
    study = open_study(request.plan(), request)
    assert study.left_out() == (5 - len({row["rank"] for row in _rows("few")})) * 2
    assert len(started) == len(set(started)) == 10 - study.left_out()
    summary = json.loads(Path("runs/few/summary.json").read_text())
    assert summary["runs"]["planned"] == summary["runs"]["complete"] == len(started)


def test_a_pruned_point_that_is_drawn_twice_hides_no_other_points_runs(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.prune_the_lowest_rank)
    rank = {"rank": {"keys": ["model.config.ffn_rank"], "choices": [2, 4]}}
    _write_sweep(project, "few", search=rank, sampler="random", trials=6, seeds=[0, 1, 2], plots=[])
    assert run_sweep(Request("few"), Console(file=io.StringIO())) == 0
    assert [row["state"] for row in _rows("few")].count("pruned") == 1
    summary = json.loads(Path("runs/few/summary.json").read_text())
    assert summary["runs"]["planned"] == len(_rows("few")) == len(started) == 4


def test_points_that_round_to_one_configuration_leave_nothing_missing(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.finish)
    rank = {"keys": ["model.config.ffn_rank"], "relative_to": "model.config.hidden_size"}
    _write_sweep(project, "near", search={"rank": {**rank, "choices": [0.25, 0.26]}}, seeds=[0, 1], plots=[])
    assert run_sweep(Request("near"), Console(file=io.StringIO())) == 0
    assert len(started) == len(_rows("near")) == 2


def test_what_runs_are_made_from_may_change_and_they_are_run_again(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.finish)
    run_sweep(Request("grid"), Console(file=io.StringIO()))
    before = list(started)
    method = project / "experiments/methods/elas.yaml"
    method.write_text(method.read_text().replace("ffn_hidden", "ffn_input"))
    assert run_sweep(Request("grid"), Console(file=io.StringIO())) == 0
    again = started[len(before) :]
    assert len(again) == 4
    assert all("ELAS" in name for name in again)
    assert set(again).isdisjoint(before)
    assert len(_rows()) == 8
    _write_sweep(project, "grid", overrides={"trainer.max_steps": 7})
    assert run_sweep(Request("grid"), Console(file=io.StringIO())) == 0
    assert len(started) == 8 + 4 + 8


def test_another_objective_does_not_take_the_values_of_the_first(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.trade_seconds_for_perplexity)
    run_sweep(Request("grid"), Console(file=io.StringIO()))
    _write_sweep(project, "grid", objective="seconds")
    run_sweep(Request("grid"), Console(file=io.StringIO()))
    assert len(started) == 8
    study = open_study(Request("grid").plan(), Request("grid")).study
    assert sorted(trial.value for trial in study.trials) == [1.0, 1.0, 2.0, 4.0]


def test_a_diverged_point_is_the_worst_whatever_is_looked_at(project: Path, started: Started) -> None:
    started.make_with(lambda request: making.diverge_at_once_if_dense)
    _write_sweep(project, "quick", objective="seconds", seeds=[0])
    console = Console(file=io.StringIO(), width=200)
    run_sweep(Request("quick"), console)
    study = open_study(Request("quick").plan(), Request("quick")).study
    assert [t.value for t in study.trials if t.params["method"] == "dense"] == [float("inf")] * 2
    assert study.best_trial.params["method"] == "ELAS"
    assert "best 1" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("objective", ["tokens_per_second", "seconds"])
def test_importances_are_those_of_the_better_end(project: Path, objective: str) -> None:
    """The better values are decided by one parameter and the worse ones by the other."""
    ranges = {
        name: {"keys": [f"model.optimizer.{key}"], "low": 0.0, "high": 1.0}
        for name, key in (("good", "lr"), ("bad", "weight_decay"))
    }
    _write_sweep(project, "fast", search=ranges, objective=objective, sampler="random", trials=200, plots=[])
    study = open_study(Request("fast").plan(), Request("fast"))
    draw = random.Random(0)
    sign = 1 if objective == "tokens_per_second" else -1
    distributions: dict[str, Any] = {name: optuna.distributions.FloatDistribution(0, 1) for name in ranges}
    for _ in range(200):
        point = {name: draw.random() for name in ranges}
        value = sign * (point["good"] - 0.6 if point["good"] > 0.6 else -point["bad"])
        study.study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=value))
    shares = study.importances()
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["good"] > 0.9


def test_a_search_whose_points_diverged_knows_no_importances(project: Path) -> None:
    lr = {"lr": {"keys": ["model.optimizer.lr"], "low": 0.1, "high": 1.0}}
    _write_sweep(project, "lost", search=lr, sampler="random", trials=5, plots=[])
    study = open_study(Request("lost").plan(), Request("lost"))
    for rate in (0.2, 0.4, 0.6, 0.8):
        study.study.add_trial(
            optuna.trial.create_trial(
                params={"lr": rate},
                distributions={"lr": optuna.distributions.FloatDistribution(0.1, 1.0)},
                value=float("inf"),
            )
        )
    assert study.importances() is None
