"""Several sweeps as one: in order, within a budget, sharing their runs with the parts alone."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import making
import pytest
import yaml
from making import Started
from rich.console import Console

from elas_lightning.analysis.load import load_sweep
from elas_lightning.cli import main
from elas_lightning.errors import UserError
from elas_lightning.sweep import member
from elas_lightning.sweep import worker as worker_module
from elas_lightning.sweep.composite import Composite, CompositeSpec, is_composite
from elas_lightning.sweep.crew import BUDGET_SPENT, Crew
from elas_lightning.sweep.run import Request, describe, open_study, run_sweep
from elas_lightning.sweep.worker import Budget, BudgetSpent

QUICK = {"trainer.max_steps": 4, "trainer.val_check_interval": 2}


@pytest.fixture
def both(project: Path) -> Path:
    """``sweeps/both.yaml``: ``grid`` with one rank and two seeds, and ``second`` with one more rank."""
    content = yaml.safe_load((project / "sweeps/grid.yaml").read_text())
    rank = content["search"]["rank"]
    for name, choices in (("grid", [0.125]), ("second", [0.25])):
        content["search"]["rank"] = {**rank, "choices": choices}
        (project / f"sweeps/{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    composite = {"question": "Both?", "parts": ["grid", "second"], "budget_minutes": {"cpu": 30}}
    (project / "sweeps/both.yaml").write_text(yaml.safe_dump(composite))
    return project


def _run(budget: float | None = None) -> tuple[list[str], str]:
    console = Console(file=io.StringIO(), width=200)
    composite = Composite(Request("both", overrides=QUICK, budget=budget))
    composite.announce(console)
    missing = composite.run(console)
    return missing, console.file.getvalue()  # type: ignore[attr-defined]


def test_parts_run_in_order_and_nothing_runs_twice(both: Path, started: Started) -> None:
    started.make_with(lambda request: making.finish)
    missing, text = _run()
    assert missing == []
    assert [name.split("_seed")[0] for name in started] == [
        f"method-{method}_rank-{rank}" for rank in (2, 4) for method in ("dense", "ELAS") for _ in range(2)
    ]
    assert "30 minutes to begin runs in" in text
    summary = json.loads(Path("runs/both/summary.json").read_text())
    assert summary["parts"] == [{"name": name, "folder": name} for name in ("grid", "second")]
    # the parts alone find their runs, and the composite those of the parts
    started.clear()
    assert run_sweep(Request("second", overrides=QUICK), Console(file=io.StringIO())) == 0
    assert _run()[0] == []
    assert started == []


def test_a_spent_budget_leaves_tables_that_say_what_is_missing(both: Path, started: Started) -> None:
    missing, text = _run(budget=0)
    assert missing == ["grid: 4 of 4 runs", "second: 4 of 4 runs"]
    assert "the 0 minutes are over" in text
    assert started == []
    for part in ("grid", "second"):
        assert "4 of 4 planned runs have not finished." in load_sweep(Path("runs") / part).missing


def test_the_next_call_goes_on_where_the_budget_ended(
    both: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, None, None, BudgetSpent()])

    def check(self: Budget) -> None:
        end = next(answers, None)
        if end is not None:
            raise end

    monkeypatch.setattr(Budget, "check", check)
    started.make_with(lambda request: making.finish)
    missing, _ = _run(budget=1)
    # the fourth run was not begun, though it is the second seed of a row
    assert len(started) == 3
    assert missing == ["grid: 1 of 4 runs", "second: 4 of 4 runs"]
    assert _run()[0] == []
    assert len(started) == len(set(started)) == 8


def test_a_worker_that_replaces_a_dead_one_has_only_the_time_that_is_left(
    both: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("grid", overrides=QUICK)
    plan = request.plan()
    plan.folder.mkdir(parents=True)
    job = json.loads(json.dumps(describe([request], [open_study(plan, request)], Budget(10))))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 11 * 60)
    assert member.work(job) == BUDGET_SPENT
    assert started == []


def test_the_status_of_a_composite_is_that_of_its_parts(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(budget=0)
    assert main(["sweep", "status", "both"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("-")[0] for line in lines if line and not line.startswith(" ")] == ["grid", "second"]
    assert lines.count("  points: 2 not begun") == 2


def test_workers_are_told_of_the_file_that_was_named(
    both: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the one in sweeps/ that has its name."""
    (both / "own").mkdir()
    content = (both / "sweeps/grid.yaml").read_text()
    (both / "own/grid.yaml").write_text(content.replace("[0, 1]", "[0]").replace("- 1\n", ""))
    monkeypatch.setattr(Crew, "work", lambda crew: member.work(crew._job))
    started.make_with(lambda request: making.finish)
    assert run_sweep(Request("own/grid.yaml", overrides=QUICK, workers=2), Console(file=io.StringIO())) == 0
    assert len(started) == 2
    assert all("seed-0" in name for name in started)
    composite = {"question": "Both?", "parts": ["own/third.yaml", "second"]}
    (both / "own/both.yaml").write_text(yaml.safe_dump(composite))
    (both / "own/grid.yaml").rename(both / "own/third.yaml")
    request = Request("own/both.yaml", overrides=QUICK, workers=2)
    assert Composite(request).run(Console(file=io.StringIO())) == []
    command = json.loads(Path("runs/third/summary.json").read_text())["command"]
    assert command.startswith("elas sweep own/third.yaml --set ")


def test_a_budget_counts_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(worker_module.time, "perf_counter", lambda: now[0])
    budget, endless = Budget(2), Budget(None)
    now[0] += 119
    budget.check()
    now[0] += 1
    endless.check()
    with pytest.raises(BudgetSpent):
        budget.check()


def test_a_plain_sweep_has_a_budget_too(both: Path, started: Started) -> None:
    assert run_sweep(Request("grid", overrides=QUICK, budget=0), Console(file=io.StringIO())) == 4
    assert started == []


def test_the_command_reports_and_exits_with_0(both: Path, started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "both", "--budget", "0"]) == 0
    out = capsys.readouterr().out
    assert "report: runs/both/report.html" in out
    assert "missing: grid: 4 of 4 runs; second: 4 of 4 runs. The same command goes on" in out
    page = Path("runs/both/report.html").read_text()
    assert "Still missing from this document" in page
    assert main(["report", "both"]) == 0
    assert main(["plots", "both"]) == 0
    assert started == []


def test_a_dry_run_lists_all_runs_with_an_estimate(
    both: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    assert main(["sweep", "both", "--dry-run", *overrides]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "(to run): elas fit" in line]) == 8
    assert lines[-1].startswith("8 runs are missing; how long they take is known once one has run here; 30 minutes")
    assert not Path("runs").exists()
    started.make_with(lambda request: making.finish)
    run_sweep(Request("grid", overrides=QUICK), Console(file=io.StringIO()))
    assert main(["sweep", "both", "--dry-run", *overrides]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("4 runs are missing; about ")
    assert " ms a step (mean of the 4 that are there)" in last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": []}, "parts: name at least one sweep"),
        ({"parts": ["grid", "grid"]}, "each once"),
        ({"parts": "grid"}, "parts is 'grid': give a list of names"),
        ({"parts": ["both"]}, "both cannot be a part of itself"),
        ({"budget_minutes": {"tpu": 3}}, "budget_minutes names tpu: cpu and gpu are allowed"),
        ({"budget_minutes": {"cpu": -1}}, "budget_minutes.cpu is -1: give minutes"),
        ({"size": "60m"}, "has 'size', which is no field: there are question, parts, budget_minutes"),
        ({"budget_minutes": {"cpu": float("nan")}}, "budget_minutes.cpu is nan: give minutes"),
    ],
)
def test_a_wrong_field_is_refused_in_one_line(both: Path, changes: dict[str, Any], message: str) -> None:
    path = both / "sweeps/both.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    with pytest.raises(UserError) as refusal:
        CompositeSpec.read(path)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_parts_must_be_sweeps(both: Path, planned: Callable[..., Any]) -> None:
    (both / "sweeps/outer.yaml").write_text(yaml.safe_dump({"question": "All?", "parts": ["both"]}))
    with pytest.raises(UserError, match="the part both has parts itself"):
        Composite(Request("outer"))
    (both / "sweeps/outer.yaml").write_text(yaml.safe_dump({"question": "All?", "parts": ["gird"]}))
    with pytest.raises(UserError, match="there is no sweep named 'gird'"):
        Composite(Request("outer"))
    assert is_composite("both")
    assert not is_composite("grid")
