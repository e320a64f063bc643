"""``elas sweep``: plan, check, run what is missing, leave the tables."""

import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from rich.console import Console

from elas_lightning.data.module import C4DataModule
from elas_lightning.layout import hold, sweep_folder, sweep_path
from elas_lightning.runner import device_kind
from elas_lightning.sweep.outcome import Outcome
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.progress import SweepProgress
from elas_lightning.sweep.spec import SweepSpec
from elas_lightning.sweep.study import Budget, BudgetSpent, RunEvent, Study


@dataclass(frozen=True)
class Request:
    """What a person asks of ``elas sweep``.

    Args:
        name: A file of ``sweeps/``, or the path of one.
        size: A name in ``experiments/sizes``; ``None`` for what the file names for this machine.
        data: A name in ``experiments/data``; likewise.
        overrides: Dotted keys for every run.
        budget: Minutes after which no more runs are begun; ``None`` for the file's own, if it has one.
    """

    name: str
    size: str | None = None
    data: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None

    @property
    def command(self) -> str:
        """What a person types to have the rest of it, too."""
        words = ["elas", "sweep", self.name]
        words += ["--size", self.size] if self.size else []
        words += ["--data", self.data] if self.data else []
        words += [part for key, value in self.overrides.items() for part in ("--set", f"{key}={value}")]
        return shlex.join(words)

    def part(self, name: str) -> "Request":
        """The same of another sweep, without a limit of its own."""
        return replace(self, name=name, budget=None)

    def plan(self) -> Plan:
        """Read the sweep's file for this machine.

        Raises:
            UserError: Unknown sweep, size or data.
        """
        spec = SweepSpec.read(sweep_path(self.name))
        machine = spec.machines[device_kind()]
        size, data = self.size or machine["size"], self.data or machine["data"]
        return Plan(spec, size, data, sweep_folder(self.name, self.size, self.data), self.overrides)


class SweepRun:
    """A sweep that is being run; a context that holds its folder and knows what is there from before.

    Args:
        plan: The sweep, checked.
        request: What it was asked for with.
        console: Where progress goes.
        budget: How long runs may be begun.

    Raises:
        UserError: On entering: another process has the folder.
    """

    def __init__(self, plan: Plan, request: Request, console: Console, budget: Budget) -> None:
        self.plan = plan
        self._console = console
        self._outcome = Outcome(plan, request.command)
        self._progress = SweepProgress(plan, console)
        self._clock = _Clock()
        self._budget = budget
        self._held = ExitStack()

    @property
    def title(self) -> str:
        """The question, and what it takes to answer it."""
        plan = self.plan
        return f"{plan.spec.question}\n{plan.planned_runs} runs of size {plan.size} on {plan.data}, into {plan.folder}/"

    @property
    def missing(self) -> int:
        """Planned runs that have not ended."""
        return self.plan.planned_runs - self._progress.done

    def __enter__(self) -> "SweepRun":
        self._held.enter_context(hold(self.plan.folder))
        self._study = Study(self.plan, self._on_run, self._progress.callbacks, self._budget)
        self._study.replay()
        self._outcome.write(self._study.importances())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def finish(self) -> None:
        """Run what is missing.

        Raises:
            Interrupted: Stopped by the user.
            BudgetSpent: The time is over.
        """
        if self._progress.done:
            self._console.print(
                f"{self._progress.done} of {self.plan.planned_runs} runs are there from before",
                highlight=False,
            )
        # once, with its own progress, before the clock starts
        C4DataModule(**self.plan.base["data"]).prepare_data()
        with self._progress:
            self._clock.lap()
            self._study.optimize()
        self._outcome.write(self._study.importances())

    def _on_run(self, event: RunEvent) -> None:
        self._outcome.add(event.trial, event.planned, event.result)
        if event.fresh:
            self._outcome.write()
        self._progress.run_ended(event, self._clock.lap())


def run_sweep(request: Request, console: Console) -> int:
    """Run a sweep to its end, or to the end of its time, going on where it stopped.

    Returns:
        How many runs are missing.

    Raises:
        UserError: The sweep cannot be run as asked; nothing was started.
        Interrupted: Stopped; the same call goes on.
    """
    plan = request.plan()
    plan.check()
    with SweepRun(plan, request, console, Budget(request.budget)) as run:
        console.print(run.title, highlight=False)
        try:
            run.finish()
        except BudgetSpent:
            console.print(f"the {request.budget:g} minutes are over", highlight=False)
        return run.missing


class _Clock:
    """Wall-clock seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        return lap
