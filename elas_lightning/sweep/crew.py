"""Several workers on one machine: started, given their share of it, replaced when they die, stopped together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from elas_lightning.errors import UserError
from elas_lightning.sweep.worker import BudgetSpent, handled_signals
from elas_lightning.training.interruption import Interrupted

# exit codes of a worker's process, beside those of every command
DONE, REFUSED, BUDGET_SPENT = 0, 2, 3
MEMBER = (sys.executable, "-m", "elas_lightning.sweep.member")
# A worker that lives shorter than that, that often in a row, is not replaced.
AT_ONCE_SECONDS, AT_ONCE_TIMES = 20.0, 3


class Crew:
    """Workers in processes of their own (``member.py``) and what they share.

    Args:
        job: What each of them is to do, as plain types.
        workers: How many.
        devices: GPUs that one run takes; each worker sees only its own.
        folder: Where each writes its log.
        on_look: Called every second or so.
        on_tick: Called several times a second.
        command: Starts a worker.
    """

    def __init__(
        self,
        job: dict[str, Any],
        workers: int,
        devices: int,
        folder: Path,
        on_look: Callable[[], None],
        on_tick: Callable[[], None],
        command: Sequence[str] = MEMBER,
    ) -> None:
        self._job = job
        self._folder = folder
        self._on_look = on_look
        self._on_tick = on_tick
        self._members = [Member(index, share(index, workers, devices), folder, command) for index in range(workers)]
        self._asked_by: int | None = None

    def work(self) -> None:
        """Start the workers and wait for the end of the work.

        Raises:
            Interrupted: Stopped by the user; the runs in progress have saved themselves.
            BudgetSpent: The time is over.
            UserError: No run can be made, or no worker stays alive.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with handled_signals(self._ask):
            try:
                for member in self._members:
                    member.start(self._job)
                self._watch()
            finally:
                for member in self._members:
                    member.stop()
                while any(member.code() is None for member in self._members):
                    self._on_tick()
                    time.sleep(0.1)
        if self._asked_by is not None:
            raise Interrupted(self._asked_by)
        codes = [member.code() for member in self._members]
        if REFUSED in codes:
            raise UserError(self._members[codes.index(REFUSED)].complaint())
        if all(code not in (DONE, BUDGET_SPENT) for code in codes):
            raise UserError(
                f"no worker stays alive: each died {AT_ONCE_TIMES} times in its first seconds; "
                f"see {self._members[0].log}"
            )
        if BUDGET_SPENT in codes:
            raise BudgetSpent

    def _watch(self) -> None:
        looked = 0.0
        while self._asked_by is None:
            codes = [member.code() for member in self._members]
            if REFUSED in codes:
                return
            dead = [
                member
                for member, code in zip(self._members, codes, strict=True)
                if code not in (None, DONE, BUDGET_SPENT) and member.may_be_replaced()
            ]
            for member in dead:
                member.start(self._job)
            # by the codes that were looked at: who has died since is replaced the next time
            if not dead and None not in codes:
                return
            if time.monotonic() - looked > 1:
                self._on_look()
                looked = time.monotonic()
            self._on_tick()
            time.sleep(0.2)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked_by is not None:
            for member in self._members:
                member.kill()
        self._asked_by = number


class Member:
    """A worker's process, from the outside.

    Args:
        index: Its number, from 0.
        environment: Its share of the machine.
        folder: Where its log goes.
        command: Starts it.
    """

    def __init__(self, index: int, environment: dict[str, str], folder: Path, command: Sequence[str]) -> None:
        self._command = command
        self.log = folder / f"{index}.log"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._died_at_once = 0

    def start(self, job: dict[str, Any]) -> None:
        """Start it, in a session of its own: a Ctrl-C in the terminal reaches it through us, once."""
        self._started = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        # the pipe stays open: its end tells the worker that we are gone. Not on the command line, which all can read.
        pipe: IO[bytes] | None = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(job).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            pass  # it died before it could read; its exit code says so

    def code(self) -> int | None:
        """Its exit code; ``None`` while it is there."""
        if self._process is None:
            return DONE
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def may_be_replaced(self) -> bool:
        """Whether to start it again now that it has died; not if it does nothing but die."""
        if self._died_at_once >= AT_ONCE_TIMES:
            return False  # given up, however long ago that was
        lived = time.monotonic() - self._started
        self._died_at_once = self._died_at_once + 1 if lived < AT_ONCE_SECONDS else 1
        return self._died_at_once < AT_ONCE_TIMES

    def stop(self) -> None:
        """Ask it to save its run and leave."""
        if self.code() is None and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once; its run notices and saves itself."""
        if self.code() is None and self._process is not None:
            self._process.kill()

    def complaint(self) -> str:
        """What it last said before it refused to go on."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("error: ")]
        return lines[-1].removeprefix("error: ") if lines else f"a worker refused; see {self.log}"


def share(index: int, workers: int, devices: int) -> dict[str, str]:
    """A worker's part of the machine: GPUs round robin, or its part of the cores, as environment variables.

    Args:
        index: The worker's number.
        workers: How many there are.
        devices: GPUs that one run takes.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if torch.cuda.is_available() and gpus:
        own = [gpus[(index * devices + offset) % len(gpus)] for offset in range(min(devices, len(gpus)))]
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)}
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // workers))}


def devices_of(asked: Any) -> int:
    """GPUs that a run takes, by its ``trainer.devices``."""
    if isinstance(asked, list):
        return len(asked)
    number = int(asked) if str(asked).lstrip("-").isdigit() else 1
    return max(1, number)
