"""``elas sweep``: plan, check, run what is missing, leave the tables."""

import shlex
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from elas_lightning.data.module import C4DataModule
from elas_lightning.layout import sweep_folder, sweep_path
from elas_lightning.runner import device_kind
from elas_lightning.sweep.outcome import Outcome
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.progress import SweepProgress
from elas_lightning.sweep.spec import SweepSpec
from elas_lightning.sweep.study import RunEvent, Study, locked


def make_plan(name: str, size: str | None, data: str | None, overrides: dict[str, Any]) -> Plan:
    """Read a sweep's file for this machine.

    Raises:
        UserError: Unknown sweep, size or data.
    """
    spec = SweepSpec.read(sweep_path(name))
    machine = spec.machines[device_kind()]
    return Plan(
        spec, size or machine["size"], data or machine["data"], sweep_folder(name, size, data), overrides
    )


def run_sweep(
    name: str, size: str | None, data: str | None, overrides: dict[str, Any], console: Console
) -> Path:
    """Run a sweep to its end, going on where it stopped.

    Returns:
        The folder with its results.

    Raises:
        UserError: The sweep cannot be run as asked; nothing was started.
        Interrupted: Stopped; the same call goes on.
    """
    plan = make_plan(name, size, data, overrides)
    plan.check()
    command = ["elas", "sweep", name]
    command += ["--size", size] if size else []
    command += ["--data", data] if data else []
    command += [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    with locked(plan.folder):
        console.print(
            f"{plan.spec.question}\n{plan.planned_runs} runs of size {plan.size} on {plan.data}, into {plan.folder}/",
            highlight=False,
        )
        C4DataModule(
            **plan.base["data"]
        ).prepare_data()  # once, with its own progress, before the clock starts
        outcome = Outcome(plan, shlex.join(command))
        clock = _Clock()
        with SweepProgress(plan, console) as progress:

            def on_run(event: RunEvent) -> None:
                outcome.add(event.trial, event.planned, event.result)
                outcome.write()
                progress.run_ended(event, clock.lap())

            study = Study(plan, on_run, progress.callbacks)
            study.replay()
            if progress.done:
                console.print(
                    f"{progress.done} of {plan.planned_runs} runs are there from before", highlight=False
                )
            clock.lap()
            study.optimize()
        outcome.write(study.importances())
    return plan.folder


class _Clock:
    """Wall-clock seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        return lap
