"""``elas sweep``: plan, check, run what is missing, leave the tables."""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console

from elas_lightning.configuration import as_yaml
from elas_lightning.data.module import C4DataModule
from elas_lightning.errors import UserError
from elas_lightning.layout import sweep_folder, sweep_path
from elas_lightning.processes import hold
from elas_lightning.sweep.crew import Crew, devices_of
from elas_lightning.sweep.outcome import Outcome
from elas_lightning.sweep.patience import PATIENCE_SECONDS
from elas_lightning.sweep.plan import Plan, PlannedRun
from elas_lightning.sweep.progress import RunBars, SweepProgress
from elas_lightning.sweep.spec import SweepSpec
from elas_lightning.sweep.storage import Unreachable, open_storage, redact
from elas_lightning.sweep.study import Study
from elas_lightning.sweep.worker import Budget, BudgetSpent, Timing, Worker
from elas_lightning.training.hardware import device_kind
from elas_lightning.training.live import read_progress

_OPENING_SECONDS = 60.0
_PREPARING_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Request:
    """What a person asks of ``elas sweep``.

    Args:
        name: A file of ``sweeps/``, or the path of one.
        size: A name in ``experiments/sizes``; ``None`` for what the file names for this machine.
        data: A name in ``experiments/data``; likewise.
        overrides: Dotted keys for every run.
        budget: Minutes after which no more runs are begun; ``None`` for the file's own, if it has one.
        workers: Processes that work on it here.
        storage: Where the study lives, as a URL; ``None`` for a file in the sweep's folder.
        timing: How long workers wait for what.
    """

    name: str
    size: str | None = None
    data: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None
    workers: int = 1
    storage: str | None = None
    timing: Timing = field(default_factory=Timing)

    @property
    def command(self) -> str:
        """What a person types to have the rest of it, too."""
        words = ["elas", "sweep", self.name]
        words += ["--size", self.size] if self.size else []
        words += ["--data", self.data] if self.data else []
        # as YAML, which is what --set reads: Python's None and 1e-05 are texts there
        settings = [f"{key}={as_yaml(value)}" for key, value in self.overrides.items()]
        words += [part for setting in settings for part in ("--set", setting)]
        words += ["--storage", redact(self.storage)] if self.storage else []
        return shlex.join(words)

    def part(self, name: str) -> "Request":
        """The same of another sweep, without a limit of its own."""
        return replace(self, name=name, budget=None)

    def plan(self) -> Plan:
        """Read the sweep's file for this machine.

        Raises:
            UserError: Unknown sweep, size or data, or a sweep that has no place for them.
        """
        spec = SweepSpec.read(sweep_path(self.name))
        for option, given in (("size", self.size), ("data", self.data)):
            if given is not None and not any(f"{{{option}}}" in name for name in spec.base):
                raise UserError(
                    f"--{option} {given} changes nothing in the sweep {spec.name}: leave it out, or write {{{option}}} "
                    "where base names the overlay"
                )
        machine = spec.machines[device_kind()]
        size, data = self.size or machine["size"], self.data or machine["data"]
        return Plan(spec, size, data, sweep_folder(self.name, self.size, self.data), self.overrides)


class SweepRun:
    """A sweep as this process sees it: what has come of it so far, in tables and for people.

    Args:
        plan: The sweep, checked.
        request: What it was asked for with.
        console: Where progress goes.
    """

    def __init__(self, plan: Plan, request: Request, console: Console) -> None:
        self.plan = plan
        self.request = request
        self._console = console
        self._outcome = Outcome(plan, request.command)
        self._progress = SweepProgress(plan, console)
        self._active: list[PlannedRun] = []
        self._announced = False
        self.study = open_study(plan, request)
        self.refresh()
        self._write()
        self._progress.begin()

    @property
    def missing(self) -> int:
        """Planned runs that have not ended."""
        return max(0, self.plan.planned_runs - self._progress.done - self.study.left_out())

    def announce(self) -> None:
        """Say, once, what is asked and what it takes to answer it."""
        if self._announced:
            return
        self._announced = True
        plan, done = self.plan, self._progress.done
        said = [plan.spec.question, f"{plan.planned_runs} runs of size {plan.size} on {plan.data}, into {plan.folder}/"]
        if done:
            said.append(f"{done} of {plan.planned_runs} runs are there from before")
        self._console.print("\n".join(said), highlight=False)

    def refresh(self) -> None:
        """Take in the runs that have ended since, whoever made them."""
        events = list(self.study.events())
        for event in events:
            self._outcome.add(event.trial, event.planned, event.result)
            if self.study.is_about_to_be_tried_again(event):
                continue
            self._progress.run_ended(event)
        if events and self._announced:
            self._outcome.write()
        self._active = self.study.active()

    def close(self) -> None:
        """Write the tables as they stay."""
        self.refresh()
        self._write()

    def _write(self) -> None:
        self._outcome.write(self.study.importances(), self.study.left_out())

    def bars(self) -> Iterator[tuple[str, int, int]]:
        """Label, step and number of steps of each run in progress whose directory is within reach."""
        for planned in self._active:
            progress = read_progress(planned.request.directory)
            if progress is not None:
                yield f"{planned.label}, seed {planned.seed}", progress["step"], progress["max_steps"]


def open_study(plan: Plan, request: Request, retry_below: int | None = None) -> Study:
    """The study of a plan, made if it is missing; its folder, too."""
    with hold(plan.folder, _OPENING_SECONDS):  # two at once would both make the tables
        storage = open_storage(request.storage, plan.folder)
        return Study(plan, storage, request.timing.grace, retry_below)


def rejoin_study(request: Request, retry_below: int | None) -> Study:
    """Open a study that was there when others began: who replaces a dead worker may find the database away.

    A typed command does not wait: its address may be wrong.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return open_study(request.plan(), request, retry_below)
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def prepare_data(plan: Plan) -> None:
    """Get the corpus and the tokenizer of a sweep, once for all runs and with their own progress."""
    with hold(plan.folder, _PREPARING_SECONDS):
        C4DataModule(**plan.base["data"]).prepare_data()


def fill(runs: Sequence[SweepRun], request: Request, console: Console, budget: Budget) -> None:
    """Run what is missing, with as many workers as were asked for, and leave the tables.

    Raises:
        Interrupted: Stopped by the user; the same call goes on.
        UserError: No run can be made, or no worker stays alive.
    """
    unsettled = [run for run in runs if not run.study.is_settled()]
    for run in unsettled:
        prepare_data(run.plan)
    try:
        with RunBars(console) as bars:

            def look() -> None:
                for run in runs:
                    run.refresh()

            def tick() -> None:
                bars.show(bar for run in runs for bar in run.bars())

            studies = [run.study for run in runs]
            if request.workers > 1 and unsettled:
                first = runs[0].plan
                devices = devices_of(first.base["trainer"]["devices"])
                job = describe([run.request for run in runs], studies, budget)
                Crew(job, request.workers, devices, first.folder / "workers", look, tick).work()
            else:
                turns = [run.announce for run in runs]
                Worker(studies, budget, request.timing, turns, look, tick).work()
    except BudgetSpent:
        console.print(f"the {budget.minutes:g} minutes are over", highlight=False)
    finally:
        for run in runs:
            run.close()


def describe(requests: Sequence[Request], studies: Sequence[Study], budget: Budget) -> dict[str, Any]:
    """A crew's job as plain types, for ``member.py``: the same failures are tried again by all, once.

    The end of the budget is a time of this machine's clock, since whoever replaces a dead worker has the same job.
    """
    return {
        "parts": [asdict(replace(request, workers=1)) for request in requests],
        "retry_below": [study.retry_below for study in studies],
        "ends": None if budget.left is None else time.time() + 60 * budget.left,
    }


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
    run = SweepRun(plan, request, console)
    run.announce()
    fill([run], request, console, Budget(request.budget))
    return run.missing
