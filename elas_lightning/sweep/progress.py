"""What a person sees while a sweep runs: a line per run, and on a terminal a bar for the run in progress."""

from types import TracebackType
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from elas_lightning.sweep.plan import Plan, PlannedRun
from elas_lightning.sweep.study import RunEvent


class SweepProgress:
    """Prints ``[ 5/24] trial 2 seed 1  ELAS, rank 8  perplexity 341.2  14 s  best 322.0 (…)  4 min left``.

    Args:
        plan: The sweep, for its number of runs and its objective.
        console: Where to print; its terminal decides whether bars are drawn.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._done: set[str] = set()
        self._best: tuple[float, str] | None = None
        self._seconds: list[float] = []
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @property
    def done(self) -> int:
        """Runs that have ended, in this process or before."""
        return len(self._done)

    def __enter__(self) -> "SweepProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def callbacks(self, planned: PlannedRun) -> list[L.Callback]:
        """The callback that moves the bar of one run."""
        return [_StepBar(self._bars, f"{planned.label}, seed {planned.seed}")]

    def run_ended(self, event: RunEvent, wall_seconds: float) -> None:
        """Count a run that has ended, and print its line unless it ended in an earlier process."""
        self._done.add(event.result.run)
        objective = self._plan.spec.objective
        score = event.result.metrics.get(objective)
        if score is not None and (self._best is None or score < self._best[0]):
            self._best = (score, event.planned.label)
        if not event.fresh:
            return
        self._seconds.append(wall_seconds)
        name = objective.removeprefix("val_").replace("_", " ")
        ended_well = event.result.state == "complete" and score is not None
        verdict = f"{name} {score:.4g}" if ended_well else f"{event.result.state}: {event.result.reason}"
        total = self._plan.planned_runs
        parts = [
            f"[{self.done:>{len(str(total))}}/{total}] trial {event.trial} seed {event.planned.seed}",
            event.planned.label,
            verdict,
            f"{wall_seconds:.0f} s",
        ]
        if self._best is not None:
            parts.append(f"best {self._best[0]:.4g} ({self._best[1]})")
        if self.done < total:
            left = (total - self.done) * sum(self._seconds) / len(self._seconds)
            parts.append(f"{duration(left)} left")
        self._console.print("  ".join(parts), highlight=False, markup=False, soft_wrap=True)


class _StepBar(L.Callback):
    def __init__(self, bars: Progress, label: str) -> None:
        self._bars = bars
        self._label = label
        self._task: TaskID | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._task = self._bars.add_task(self._label, total=trainer.max_steps, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=trainer.global_step)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")


def duration(seconds: float) -> str:
    """``50 s``, ``4 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
