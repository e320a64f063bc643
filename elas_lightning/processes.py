"""Which process writes into a folder, and what those of one run tell each other before there is a trainer."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import register_after_fork
from operator import methodcaller
from pathlib import Path
from typing import Any, TextIO

from elas_lightning.errors import UserError

_HANDED_OVER = "ELAS_RUN"
_LOCK_NAME = ".lock"
_LOCK_POLL_SECONDS = 0.2


class Occupied(UserError):
    """Another process holds the folder."""


def is_first_rank() -> bool:
    """Whether this process is the one of a run that writes its files, as far as the environment says.

    Before there is a trainer; the variables are those of Lightning's launcher, torchrun and SLURM's ``srun``.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    return True


@contextmanager
def handing_over(values: dict[str, Any]) -> Iterator[None]:
    """Leave plain values to the processes that this one starts with the same command line: the run's other ranks."""
    os.environ[_HANDED_OVER] = json.dumps({**values, "by": os.getpid()})
    try:
        yield
    finally:
        del os.environ[_HANDED_OVER]


def handed_over() -> dict[str, Any] | None:
    """What the process that started this one has handed over; ``None`` in a process that began by itself."""
    values: dict[str, Any] = json.loads(os.environ.get(_HANDED_OVER, "{}"))
    return values if values.get("by") == os.getppid() and not is_first_rank() else None


@contextmanager
def hold(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process alone; made if it is missing.

    The kernel gives the lock back when the process ends, however it ends. Worker processes that are forked meanwhile
    do not inherit it: they outlive a killed parent by seconds.

    Args:
        folder: A run's or a sweep's.
        wait_seconds: How long to wait for another holder to leave.

    Raises:
        Occupied: Another process has it.
        UserError: It cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK_NAME).open("w")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): give another folder") from error
    with file:
        register_after_fork(file, methodcaller("close"))
        deadline = time.monotonic() + wait_seconds
        while not _lock(file):
            if time.monotonic() >= deadline:
                raise Occupied(f"another process is at work in {folder}: wait for it or stop it")
            time.sleep(_LOCK_POLL_SECONDS)
        yield


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
