"""Where things lie: what the project ships, and the folder of runs."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from elas_lightning.errors import UserError

RUNS = Path("runs")
RESULT_NAME = "result.json"
CONFIG_NAME = "config.yaml"


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
