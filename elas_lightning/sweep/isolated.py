"""A run in a process of its own: what kills it, hangs it or leaks out of it cannot take the study along.

The process is forked from a server that has imported the runner already, so that it is there in hundredths of a
second rather than the seconds of importing torch. It stands in a session of its own: a Ctrl-C in the terminal is
the worker's to pass on, once, and what is left of a run (ranks, loaders) can be removed as a whole.
"""

import faulthandler
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from elas_lightning.errors import UserError, is_full_disk
from elas_lightning.layout import RESULT_NAME
from elas_lightning.processes import Occupied, hold
from elas_lightning.result import RunResult
from elas_lightning.runner import RunRequest, run
from elas_lightning.training.interruption import Interrupted

# How a run's process says how it ended; a signal's death is negative, a clean stop is STOPPED
DONE, RAISED, REFUSED, STOPPED, HELD, FULL = 0, 1, 2, 3, 4, 5
# A run whose worker has gone may save itself that long; then it is removed, that the next worker can go on with it.
ORPHAN_SECONDS = 120.0
# For how long a run waits for an orphan of an earlier worker to leave its directory.
HELD_SECONDS = 2 * ORPHAN_SECONDS
OUTPUT_NAME, TRACEBACK_NAME = "output.txt", "traceback.txt"
# multiprocessing's code for a process whose end nobody could tell, since the server that forked it has died
_UNTOLD = 255

Make = Callable[[RunRequest], RunResult]


class IsolatedRun:
    """The process of one run, from its start.

    Args:
        request: The run.
        make: Makes it; a function that can be imported by its name.
        method: multiprocessing's start method.
    """

    def __init__(self, request: RunRequest, make: Make = run, method: str = "forkserver") -> None:
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([run.__module__])
        for chance in reversed(range(3)):
            # the kernel closes our end when we die, however we die
            theirs, self._lifeline = context.Pipe(duplex=False)
            inherited = self._lifeline if method == "fork" else None
            self._process = context.Process(
                target=_make, args=(request, make, theirs, inherited), name=request.directory.name
            )
            try:
                self._process.start()
                break
            except (EOFError, ConnectionError):  # the server has died; the next start makes another
                if not chance:
                    raise
                self._lifeline.close()
                time.sleep(1)  # it may still be dying: until it is gone, nobody sees that another is needed
            finally:
                theirs.close()

    def ended(self, seconds: float) -> bool:
        """Wait for the end, but no longer than that."""
        return bool(wait([self._process.sentinel], timeout=seconds))

    def stop(self) -> None:
        """Ask the run to save itself and leave."""
        self._process.terminate()

    def kill(self) -> None:
        """Remove the run and everything that it has started."""
        self._kill_session()
        self._process.join()

    def close(self) -> int:
        """Take the exit code of a run that has ended; negative for the signal that killed it."""
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        if code != DONE:
            self._kill_session()  # ranks and loaders that a dead rank 0 has left behind
        self._lifeline.close()
        return -signal.SIGKILL if code == _UNTOLD else code

    def _kill_session(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def failed(request: RunRequest, seed: int, reason: str) -> RunResult:
    """The result of a run that died."""
    return RunResult(
        run=request.directory.name,
        state="failed",
        reason=" ".join(reason.split())[:500],
        seed=seed,
        config={},
        overlays=[str(path) for path in request.overlays],
        overrides=dict(request.overrides),
        metrics={},
        backend={},
        data={},
        environment={"command": request.command},
        started="",
        finished="",
    )


def _make(request: RunRequest, make: Make, lifeline: Connection, inherited: Connection | None) -> None:
    """What the process does; it leaves with the exit code."""
    os.setsid()
    if inherited is not None:
        inherited.close()  # a forked copy of the worker's end would keep the lifeline whole
    threading.Thread(target=_end_with_the_worker, args=(lifeline,), daemon=True).start()
    try:
        with hold(request.directory, HELD_SECONDS):
            (request.directory / TRACEBACK_NAME).unlink(missing_ok=True)
        _write_into(request)
        # Lightning starts the other ranks of a run by this process's own command
        sys.modules["__main__"] = import_module("elas_lightning.__main__")
        own = ["--trainer.default_root_dir", str(request.directory), "--trainer.enable_progress_bar", "false"]
        sys.argv = [*shlex.split(request.command), *own]
        make(request)
    except Interrupted:
        _leave(STOPPED)
    except Occupied:
        _leave(HELD)
    except Exception as error:
        if is_full_disk(error):
            _leave(FULL)  # and no result: the run goes on from its checkpoint when there is room
        if isinstance(error, UserError):
            _leave(REFUSED, request, str(error))
        (request.directory / TRACEBACK_NAME).write_text(traceback.format_exc())
        _leave(RAISED, request, f"{type(error).__name__}: {error}")
    _leave(DONE)


def _leave(code: int, request: RunRequest | None = None, reason: str = "") -> NoReturn:
    if request is not None:
        failed(request, int(request.overrides.get("seed_everything", 0)), reason).write(request.directory)
    sys.exit(code)  # and not at once: semaphores that nobody gives back are complained of later


def _write_into(request: RunRequest) -> None:
    """What the run, its ranks and the libraries print goes to a file beside its results."""
    file = os.open(request.directory / OUTPUT_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    faulthandler.enable(sys.stderr)


def _end_with_the_worker(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it ends with the worker
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os.killpg(os.getpid(), signal.SIGKILL)


def has_result(request: RunRequest) -> bool:
    """Whether the run has left a result that counts: what failed is tried again."""
    return (request.directory / RESULT_NAME).exists() and RunResult.read(request.directory).state != "failed"
