"""A worker: takes one free place after another, until every place is settled.

Any number of them, on any number of machines, fill one study; what they know of each other is what is in its
storage. A single ``elas sweep`` is one; ``--workers`` starts more (``crew.py``).
"""

import csv
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from elas_lightning.errors import UserError, is_full_disk, no_room
from elas_lightning.layout import RESULT_NAME
from elas_lightning.result import RunResult
from elas_lightning.sweep import claims
from elas_lightning.sweep.heartbeat import Heartbeat
from elas_lightning.sweep.isolated import FULL, HELD, ORPHAN_SECONDS, REFUSED, STOPPED, IsolatedRun, failed, has_result
from elas_lightning.sweep.plan import PlannedRun
from elas_lightning.sweep.study import Claim, Study, TrialLost
from elas_lightning.training.interruption import Interrupted
from elas_lightning.training.live import PROGRESS_NAME, VERDICT_NAME, read_progress, write_verdict

# A run that is killed that often without a step of progress in between is not begun again.
DEATHS = 3


class Budget:
    """Minutes in which runs may be begun; those that are under way when they are over are finished.

    Args:
        minutes: ``None`` for no end.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self._start = time.perf_counter()

    @property
    def left(self) -> float | None:
        """Minutes that are left."""
        if self.minutes is None:
            return None
        return max(0.0, self.minutes - (time.perf_counter() - self._start) / 60)

    def check(self) -> None:
        """Ask for time for one more run.

        Raises:
            BudgetSpent: There is none left.
        """
        if self.left == 0:
            raise BudgetSpent


class BudgetSpent(BaseException):
    """The time is over: what is missing is left for the next call. A ``BaseException``, as ``Interrupted`` is."""


@dataclass(frozen=True)
class Timing:
    """How long a worker waits for what, in seconds.

    Args:
        heartbeat: Between two signs of life.
        grace: Without one, after which another machine's worker counts as dead.
        poll: Between two looks at the study.
        patience: Without a step or a batch of validation, after which a run counts as hung.
    """

    heartbeat: float = 15.0
    grace: float = 120.0
    poll: float = 2.0
    patience: float = 1800.0


class Worker:
    """Works on studies in their order: a later one is begun when an earlier one has no free place.

    Args:
        studies: What is to be filled.
        budget: Asked before each run.
        timing: How long to wait for what.
        on_turn: For each study, called when a place is taken in it.
        on_look: Called every few seconds, and after each run.
        on_tick: Called several times a second.
        start: Starts a run.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        budget: Budget,
        timing: Timing,
        on_turn: Sequence[Callable[[], None]] = (),
        on_look: Callable[[], None] = lambda: None,
        on_tick: Callable[[], None] = lambda: None,
        start: Callable[[Any], IsolatedRun] = IsolatedRun,
    ) -> None:
        self._studies = studies
        self._budget = budget
        self._timing = timing
        self._on_turn = on_turn
        self._on_look = on_look
        self._on_tick = on_tick
        self._start = start
        self._asked_by: int | None = None
        self._run: IsolatedRun | None = None
        self._looked = 0.0
        self._complaint: str | None = None

    def work(self) -> None:
        """Run what is missing, and wait for what others run: they may die.

        Raises:
            Interrupted: Stopped by the user; the run in progress has saved itself.
            BudgetSpent: The time is over.
            UserError: Two runs in a row cannot be run, for the same reason.
            OSError: There is no room on the disk; the run keeps what it has saved.
        """
        with handled_signals(self._ask):
            while True:
                self._look()
                claim = self._claim()
                if claim is not None:
                    self._fill(*claim)
                elif all(study.is_settled() for study in self._studies):
                    return
                else:
                    self._wait(self._timing.poll)

    def _claim(self) -> tuple[Study, Claim] | None:
        for index, study in enumerate(self._studies):
            claim = study.claim(self._budget.check)
            if claim is not None:
                if self._on_turn:
                    self._on_turn[index]()
                return study, claim
        return None

    def _fill(self, study: Study, claim: Claim) -> None:
        """Run a place's seeds and tell what they came to."""
        complaint, self._complaint = self._complaint, None
        try:
            with Heartbeat(study.storage, claim.id, self._timing.heartbeat):
                results: list[RunResult] = []
                for index, seed in enumerate(study.plan.spec.seeds):
                    planned = study.planned(claim.point, seed)
                    result, seconds = study.result(planned), 0.0
                    if result is None:
                        if index:  # for the first one, the claim has asked
                            self._budget.check()
                        began = time.perf_counter()
                        result = self._make(study, claim, planned, index)
                        seconds = time.perf_counter() - began
                    study.keep(claim, result, seconds)
                    self._look(now=True)
                    results.append(result)
                    if result.state == "pruned":
                        break
                study.conclude(claim, results)
        except TrialLost:
            return
        except _Held as held:
            study.release(claim, str(held))
            return
        except BudgetSpent:
            study.release(claim, "the time was over")
            raise
        except OSError as error:
            if is_full_disk(error):
                study.release(claim, "there was no room on the disk")
            raise
        except Interrupted as stop:
            study.release(claim, str(stop))
            raise
        self._look(now=True)
        # one impossible point is a row with its reason; the same complaint twice in a row is about all of them
        if self._complaint is not None and self._complaint == complaint:
            raise UserError(self._complaint)

    def _make(self, study: Study, claim: Claim, planned: PlannedRun, index: int) -> RunResult:
        """Make a run, taking it up again when it is killed."""
        directory = planned.request.directory
        study.storage.set_trial_system_attr(claim.id, claims.RUN, directory.name)
        if (directory / RESULT_NAME).exists() and not has_result(planned.request):
            (directory / RESULT_NAME).unlink()
        judge = _Judge(study, claim, directory, index)
        deaths, reached = 0, -1
        while True:
            judge.prepare()
            code, hung = self._accompany(study, claim, judge, self._start(planned.request))
            judge.look()
            if code == HELD:
                raise _Held(f"another process was at work in {directory}")
            if code == FULL:  # which the next run's first file would say again
                raise no_room(directory)
            if self._asked_by is not None and not (directory / RESULT_NAME).exists():
                raise Interrupted(self._asked_by)
            if code >= 0 and code != STOPPED:
                return self._outcome(planned, code)
            step = (judge.progress or {"step": -1})["step"]
            deaths = 1 if step > reached else deaths + 1
            reached = max(step, reached)
            if deaths >= DEATHS:
                return self._give_up(planned, hung, code)

    def _accompany(self, study: Study, claim: Claim, judge: "_Judge", run: IsolatedRun) -> tuple[int, bool]:
        """Wait for the end of a run: its exit code, and whether it had to be killed because it hung.

        Raises:
            TrialLost: Others took this worker for dead.
        """
        self._run = run
        last, since, asked, hung = judge.progress, time.monotonic(), False, False
        try:
            while not run.ended(0.1):
                judge.look()
                if judge.progress != last:
                    last, since = judge.progress, time.monotonic()
                if self._asked_by is not None and not asked:
                    asked = True
                    run.stop()
                if not hung and time.monotonic() - since > self._timing.patience:
                    hung = True
                    run.kill()
                if self._is_time_to_look(busy=True):
                    self._look(now=True)
                    study.check_ours(claim)
                self._on_tick()
        except BaseException:
            run.stop()
            if not run.ended(ORPHAN_SECONDS):
                run.kill()
            raise
        finally:
            self._run = None
            code = run.close()
        return code, hung

    def _outcome(self, planned: PlannedRun, code: int) -> RunResult:
        if not (planned.request.directory / RESULT_NAME).exists():
            return failed(planned.request, planned.seed, f"it left no result (exit code {code})")
        result = RunResult.read(planned.request.directory)
        if code == REFUSED:
            self._complaint = result.reason
        return result

    def _give_up(self, planned: PlannedRun, hung: bool, code: int) -> RunResult:
        if hung:
            why = f"it made no progress for {self._timing.patience / 60:g} minutes"
        else:
            name = signal.Signals(-code).name if code < 0 else "SIGTERM"
            hint = " (often the kernel, out of memory)" if name == "SIGKILL" else ""
            why = f"it was ended by {name}{hint}"
        result = failed(planned.request, planned.seed, f"{why}, {DEATHS} times without a step in between")
        planned.request.directory.mkdir(parents=True, exist_ok=True)
        result.write(planned.request.directory)
        return result

    def _look(self, now: bool = False) -> None:
        if now or self._is_time_to_look():
            self._looked = time.monotonic()
            for study in self._studies:
                study.put_back_lost()
            self._on_look()
        if self._asked_by is not None and self._run is None:
            raise Interrupted(self._asked_by)

    def _is_time_to_look(self, busy: bool = False) -> bool:
        # a busy worker cannot take what has become free, so it looks for dead ones less often
        return time.monotonic() - self._looked >= self._timing.poll * (5 if busy else 1)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._asked_by is None and time.monotonic() < until:
            self._on_tick()
            time.sleep(0.05)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked_by is not None and self._run is not None:
            self._run.kill()  # asked twice: the last checkpoint has to do
        self._asked_by = number


class _Judge:
    """Reads a run's validations from its directory, reports them by step, and answers each with the pruner's verdict.

    Args:
        study: The run's.
        claim: The run's trial.
        directory: The run's.
        index: Which of the point's seeds it is. Later seeds report at later steps, so that a point's second seed is
            compared with the second seeds of others.
    """

    def __init__(self, study: Study, claim: Claim, directory: Path, index: int) -> None:
        self._study = study
        self._claim = claim
        self._directory = directory
        self._index = index
        self._reported = study.reported(claim)
        self._validated = -1
        self.progress: dict[str, Any] | None = None

    def prepare(self) -> None:
        """Before the run is started: say whether it is going to be judged."""
        self._validated = -1
        self.progress = None
        (self._directory / PROGRESS_NAME).unlink(missing_ok=True)  # of whoever had the run before
        if self._study.plan.spec.pruner == "none":
            (self._directory / VERDICT_NAME).unlink(missing_ok=True)
        else:
            write_verdict(self._directory, -1, None)

    def look(self) -> None:
        """Report what is new.

        Raises:
            TrialLost: The trial is no longer this worker's.
        """
        self.progress = read_progress(self._directory)
        if self.progress is None or self.progress["validated_step"] <= self._validated:
            return
        self._validated = self.progress["validated_step"]
        objective, length = self._study.plan.spec.objectives[0].name, self.progress["max_steps"]
        for step, value in _validations(self._directory / "curve.csv", objective):
            place = self._index * length + step
            if place not in self._reported:
                self._reported.add(place)
                self._study.report(self._claim, value, place)
        if self._study.plan.spec.pruner != "none":
            verdict = self._study.verdict(self._claim)
            reason = f"{verdict} at step {self._validated}" if verdict else None
            write_verdict(self._directory, self._validated, reason)


class _Held(Exception):
    """Another process is in the run's directory and does not leave."""


@contextmanager
def handled_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send SIGINT and SIGTERM to a handler while the context is open; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _validations(curve: Path, objective: str) -> list[tuple[int, float]]:
    try:
        with curve.open(newline="") as file:
            return [(int(row["step"]), float(row[objective])) for row in csv.DictReader(file) if row.get(objective)]
    except (OSError, ValueError):
        return []  # it is just being cut back to its checkpoint
