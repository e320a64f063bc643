"""Runs in processes of their own, which tests may kill.

A process forked by a server that has imported everything starts in a fraction of a second; ``python -m elas_lightning``
takes seconds to import. Both are real processes with real loader workers.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[1]


class Started(Protocol):
    """A process that is running ``elas``."""

    pid: int

    def end(self, seconds: float = 300) -> int:
        """Wait for its end; its exit code, negative for a signal."""


class Forked:
    """``elas`` in a process that the server forked.

    Args:
        target: Called in it.
        arguments: Of the target.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fitting", "elas_lightning.runner"])
        self._process = context.Process(target=target, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def end(self, seconds: float = 300) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"process {self.pid} did not end")
        return self._process.exitcode


class Fresh:
    """``python -m elas_lightning``."""

    def __init__(self, arguments: Sequence[str], cwd: Path) -> None:
        command = [sys.executable, "-m", "elas_lightning", *arguments]
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests/faults")])  # of the callbacks in watching.py
        self.log = cwd / f"log.{time.monotonic_ns()}"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log
            )
        self.pid = self._process.pid

    def end(self, seconds: float = 300) -> int:
        try:
            return self._process.wait(seconds)
        finally:
            self._process.kill()


def elas(arguments: Sequence[str], cwd: Path, errors: str = "log") -> None:
    """The command, in a forked process; what is printed goes to ``log``, and to standard error into ``errors``."""
    from elas_lightning.lightning_command import main  # as ``python -m elas_lightning`` does

    multiprocessing.set_start_method("fork", force=True)  # loader workers, as in any other process
    os.chdir(cwd)
    for descriptor, name in ((1, "log"), (2, errors)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    sys.exit(main(list(arguments)))


def wait_until(true: Callable[[], bool], process: Started, seconds: float = 300) -> bool:
    """Wait for something that a running process does; False if it ended before."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            os.kill(process.pid, signal.SIGKILL)
            raise TimeoutError("it never happened")
        if _is_over(process.pid):
            return False
        time.sleep(0.002)
    return True


def _is_over(pid: int) -> bool:
    """Whether a child has ended, without taking its exit code away."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state in "ZX"
