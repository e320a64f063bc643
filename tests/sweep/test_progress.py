"""The line a person reads after each run."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from elas_lightning.runner import RunResult
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.progress import SweepProgress, duration
from elas_lightning.sweep.study import RunEvent

RESULT = RunResult("", "complete", None, 0, {}, [], {}, {"val_perplexity": 20.0}, {}, {}, {}, "", "")


def _event(plan: Plan, rank: float, seed: int, **changes: Any) -> RunEvent:
    planned = plan.run({"method": "ELAS", "rank": rank}, seed)
    fresh = changes.pop("fresh", True)
    return RunEvent(3, planned, replace(RESULT, run=planned.request.directory.name, **changes), fresh)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=40)


def test_a_line_says_trial_seed_result_best_and_time_left(
    planned: Callable[..., Plan], console: Console
) -> None:
    plan = planned()
    with SweepProgress(plan, console) as progress:
        progress.run_ended(_event(plan, 0.125, 0), 60)
        progress.run_ended(_event(plan, 0.25, 1, metrics={"val_perplexity": 30.0}), 60)
    first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first == (
        "[1/8] trial 3 seed 0  ELAS, rank 2  perplexity 20  60 s  best 20 (ELAS, rank 2)  7 min left"
    )
    assert second.endswith("ELAS, rank 4  perplexity 30  60 s  best 20 (ELAS, rank 2)  6 min left")


def test_a_divergence_says_why_and_is_never_the_best(planned: Callable[..., Plan], console: Console) -> None:
    plan = planned()
    with SweepProgress(plan, console) as progress:
        progress.run_ended(_event(plan, 0.25, 0, state="diverged", reason="the loss is nan", metrics={}), 5)
    line = console.file.getvalue()  # type: ignore[attr-defined]
    assert "diverged: the loss is nan" in line
    assert "best" not in line


def test_runs_of_earlier_processes_count_but_print_nothing_and_do_not_enter_the_estimate(
    planned: Callable[..., Plan], console: Console
) -> None:
    plan = planned()
    with SweepProgress(plan, console) as progress:
        progress.run_ended(_event(plan, 0.125, 0, fresh=False), 0)
        progress.run_ended(_event(plan, 0.125, 1), 30)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1
    assert lines[0].startswith("[2/8]")
    assert lines[0].endswith("3 min left")


@pytest.mark.parametrize(("seconds", "text"), [(50, "50 s"), (240, "4 min"), (12000, "3 h 20 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
