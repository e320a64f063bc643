"""The line a person reads after each run."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from elas_lightning.result import RunResult
from elas_lightning.sweep import progress as progress_module
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.progress import RunBars, SweepProgress, duration
from elas_lightning.sweep.study import RunEvent

RESULT = RunResult("", "complete", None, 0, {}, [], {}, {"val_perplexity": 20.0}, {}, {}, {}, "", "")


def _event(plan: Plan, rank: float, seed: int, **changes: Any) -> RunEvent:
    planned = plan.run({"method": "ELAS", "rank": rank}, seed)
    seconds = changes.pop("seconds", 60.0)
    return RunEvent(3, planned, replace(RESULT, run=planned.request.directory.name, **changes), seconds)


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=40)


def _lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def test_a_line_says_trial_seed_result_best_and_time_left(
    planned: Callable[..., Plan], console: Console, passing: Callable[[float], None]
) -> None:
    plan = planned()
    progress = SweepProgress(plan, console)
    progress.begin()
    passing(60)
    progress.run_ended(_event(plan, 0.125, 0))
    passing(60)
    progress.run_ended(_event(plan, 0.25, 1, metrics={"val_perplexity": 30.0}))
    first, second = _lines(console)
    assert first == ("[1/8] trial 3 seed 0  ELAS, rank 2  perplexity 20  60 s  best 20 (ELAS, rank 2)  7 min left")
    assert second.endswith("ELAS, rank 4  perplexity 30  60 s  best 20 (ELAS, rank 2)  6 min left")


def test_the_time_left_is_by_the_pace_of_all_workers(
    planned: Callable[..., Plan], console: Console, passing: Callable[[float], None]
) -> None:
    plan = planned()
    progress = SweepProgress(plan, console)
    progress.begin()
    passing(60)
    progress.run_ended(_event(plan, 0.125, 0))
    progress.run_ended(_event(plan, 0.25, 0))
    assert _lines(console)[1].endswith("3 min left")


def test_a_run_of_three_times_the_steps_counts_as_three(
    planned: Callable[..., Plan], console: Console, passing: Callable[[float], None]
) -> None:
    plan = planned(
        search={"length": {"factors": {1: {"trainer.max_steps": 1}, 3: {"trainer.max_steps": 3}}}},
        plots=[{"kind": "curves", "series": "length"}],
    )
    progress = SweepProgress(plan, console)
    progress.begin()
    for length in (1, 3):
        for seed in plan.spec.seeds:
            passing(60 * length)
            run = plan.run({"length": length}, seed)
            progress.run_ended(RunEvent(0, run, replace(RESULT, run=run.request.directory.name), 60.0 * length))
    assert [line.rsplit("  ", 1)[1] for line in _lines(console)[:3]] == ["7 min left", "6 min left", "3 min left"]


def test_the_runs_of_a_search_count_alike(
    planned: Callable[..., Plan], console: Console, passing: Callable[[float], None]
) -> None:
    plan = planned(sampler="random", trials=3)
    progress = SweepProgress(plan, console)
    progress.begin()
    passing(60)
    progress.run_ended(_event(plan, 0.125, 0))
    assert _lines(console)[0].endswith("5 min left")


def test_a_divergence_says_why_and_is_never_the_best(planned: Callable[..., Plan], console: Console) -> None:
    plan = planned()
    progress = SweepProgress(plan, console)
    progress.begin()
    progress.run_ended(_event(plan, 0.25, 0, state="diverged", reason="the loss is nan", metrics={}))
    assert "diverged: the loss is nan" in _lines(console)[0]
    assert "best" not in _lines(console)[0]
    progress.run_ended(_event(plan, 0.25, 1, metrics={"val_perplexity": None}))  # of a loss that is too large for it
    assert "complete: its perplexity is no finite number" in _lines(console)[1]


def test_runs_from_before_count_but_print_nothing_and_do_not_enter_the_estimate(
    planned: Callable[..., Plan], console: Console, passing: Callable[[float], None]
) -> None:
    plan = planned()
    progress = SweepProgress(plan, console)
    progress.run_ended(_event(plan, 0.125, 0))
    progress.begin()
    passing(30)
    progress.run_ended(_event(plan, 0.125, 1))
    progress.run_ended(_event(plan, 0.125, 1))  # a trial that goes on with another's runs tells of them again
    assert len(_lines(console)) == 1
    assert _lines(console)[0].startswith("[2/8]")
    assert _lines(console)[0].endswith("3 min left")


def test_bars_come_and_go_with_the_runs() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with RunBars(console) as bars:
        bars.show([("ELAS, rank 2, seed 0", 3, 10), ("ELAS, rank 4, seed 0", 1, 10)])
        bars._bars.refresh()
        bars.show([("ELAS, rank 4, seed 0", 2, 10)])
        assert [(task.description, task.completed) for task in bars._bars.tasks] == [("ELAS, rank 4, seed 0", 2)]
    assert "3/10" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seconds", "text"), [(50, "50 s"), (240, "4 min"), (12000, "3 h 20 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
