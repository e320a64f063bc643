"""Where things lie: what the project ships, and the folder of runs; and which process may write into a run's."""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import register_after_fork
from operator import methodcaller
from pathlib import Path
from typing import Any, TextIO

from elas_lightning.errors import UserError

RUNS = Path("runs")
RESULT_NAME = "result.json"
CONFIG_NAME = "config.yaml"
_HANDED_OVER = "ELAS_RUN"
_LOCK_NAME = ".lock"
_LOCK_POLL_SECONDS = 0.2


def shipped_folder(name: str) -> Path:
    """``experiments`` or ``sweeps``: of the working directory if it has one, else of the checkout.

    Raises:
        UserError: Neither has it.
    """
    candidates = [Path(name), Path(__file__).resolve().parent.parent / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(
        f"there is no folder {name}/ here or beside the package: run the command from the root of a checkout"
    )


def overlay_path(name: str) -> Path:
    """The overlay ``experiments/<name>.yaml``.

    Raises:
        UserError: There is none of that name; the message lists its neighbours.
    """
    root = shipped_folder("experiments")
    path = root / f"{name}.yaml"
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else root
        there = ", ".join(sorted(p.stem if p.suffix else f"{p.name}/" for p in folder.iterdir()))
        raise UserError(f"there is no overlay {os.path.relpath(path)}: choose one of {there}")
    return path


def sweep_path(name: str) -> Path:
    """The sweep ``sweeps/<name>.yaml``, or ``name`` itself if it is the path of a YAML file.

    Raises:
        UserError: There is none of that name; the message lists those there are.
    """
    if name.endswith((".yaml", ".yml")):
        given = Path(name)
        if given.is_file():
            return given
        raise UserError(f"there is no file {name}: give the path of a sweep's YAML file or a name from sweeps/")
    folder = shipped_folder("sweeps")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"there is no sweep named {name!r}: choose one of {there}")
    return path


def sweep_folder(name: str, size: str | None, data: str | None) -> Path:
    """Where a sweep's results lie: ``runs/<name>``, or ``runs/<name>_60m_c4`` for a size and data that were asked for.

    Plots and reports find results this way, without the sweep's file.

    Raises:
        UserError: The size or the data is a path and no name.
    """
    for option, given, overlays in (("--size", size, "sizes"), ("--data", data, "data")):
        if given is not None and (not given or Path(given).name != given):
            raise UserError(f"{option} {given!r} is no name: give that of a file in experiments/{overlays}")
    return RUNS / "_".join(part for part in (Path(name).stem, size, data) if part)


def new_run_directory(kind: str) -> Path:
    """A fresh ``runs/<kind>/NNN``; made at once, so that two runs started together get two."""
    root = RUNS / kind
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(p.name) for p in root.iterdir() if re.fullmatch(r"\d+", p.name)]
    number = max(taken, default=-1) + 1
    while True:
        directory = root / f"{number:03d}"
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return directory


class Occupied(UserError):
    """Another process holds the folder."""


class Before:
    """What was there before a run was begun, so that one that is refused leaves nothing behind.

    Args:
        place: The run's directory, or the folder in which it gets a new one.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._there = {path for path in (place, *place.parents) if os.path.exists(path)}
        if os.path.isdir(place):  # unlike a Path's own, both are false where a name is too long
            self._there.update(place.iterdir())

    def restore(self, directory: Path) -> None:
        """Remove the run's directory, or what is new in it, and the folders above it that were not there either."""
        if directory not in self._there:
            shutil.rmtree(directory, ignore_errors=True)
        elif directory == self._place and directory.is_dir():
            for new in set(directory.iterdir()) - self._there:
                shutil.rmtree(new) if new.is_dir() else new.unlink()
        for folder in directory.parents:
            if folder in self._there:
                break
            with suppress(OSError):  # somebody else has put something in
                folder.rmdir()


def checkpoint_folder(directory: Path) -> Path:
    """Where a run's checkpoints lie."""
    return directory / "checkpoints"


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
