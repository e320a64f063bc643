"""What a person sees while a sweep runs: a line per run, and on a terminal a bar for each run in progress."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.study import RunEvent


class RunBars:
    """Bars for the runs in progress, on a terminal only.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "RunBars":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, runs: Iterable[tuple[str, int, int]]) -> None:
        """Draw the runs that there are now: label, step and number of steps of each."""
        shown = {label: (step, steps) for label, step, steps in runs}
        for label in self._tasks.keys() - shown.keys():
            self._bars.remove_task(self._tasks.pop(label))
        for label, (step, steps) in shown.items():
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=steps)
            self._bars.update(self._tasks[label], completed=step)


class SweepProgress:
    """Prints ``[ 5/24] trial 2 seed 1  ELAS, rank 8  perplexity 341.2  14 s  best 322.0 (…)  4 min left``.

    Args:
        plan: The sweep, for its number of runs and its objective.
        console: Where to print.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._done: set[str] = set()
        self._best: tuple[float, str] | None = None
        self._began: float | None = None
        # Runs count by their optimizer steps; of a search, whose points nobody knows beforehand, all alike.
        self._fresh = 0
        self._steps = {} if plan.spec.is_search else {r.request.directory.name: plan.steps_of(r) for r in plan.runs()}

    @property
    def done(self) -> int:
        """Runs that have ended, in this call or before."""
        return len(self._done)

    def begin(self) -> None:
        """Runs that end from now on are this call's; the time that is left is estimated by them."""
        self._began = time.perf_counter()

    def run_ended(self, event: RunEvent) -> None:
        """Count a run that has ended, and print its line unless it ended before :meth:`begin`."""
        known = event.result.run in self._done
        self._done.add(event.result.run)
        objective = self._plan.spec.objectives[0]
        ended_well = event.result.state == "complete"
        score = event.result.metrics.get(objective.name) if ended_well else None
        if score is not None and (self._best is None or objective.is_better(score, self._best[0])):
            self._best = (score, event.planned.label)
        if self._began is None or known:
            return
        self._fresh += self._steps.get(event.result.run, 1)
        name = objective.name.removeprefix("val_").replace("_", " ")
        if score is not None:
            verdict = f"{name} {score:.4g}"
        else:
            verdict = f"{event.result.state}: {event.result.reason or f'its {name} is no finite number'}"
        total = self._plan.planned_runs
        parts = [
            f"[{self.done:>{len(str(total))}}/{total}] trial {event.trial} seed {event.planned.seed}",
            event.planned.label,
            verdict,
            f"{event.seconds:.0f} s",
        ]
        if self._best is not None:
            parts.append(f"best {self._best[0]:.4g} ({self._best[1]})")
        if self.done < total:
            # by the pace of everybody who works on it
            pace = (time.perf_counter() - self._began) / self._fresh
            parts.append(f"{duration(self._left() * pace)} left")
        self._console.print("  ".join(parts), highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> int:
        if self._plan.spec.is_search:
            return self._plan.planned_runs - self.done
        return sum(steps for run, steps in self._steps.items() if run not in self._done)


def duration(seconds: float) -> str:
    """``50 s``, ``4 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
