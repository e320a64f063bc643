"""Files that are whole or not there, whoever reads them meanwhile and whatever happens; and where a cache lies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from elas_lightning.errors import UserError

TEMPORARY = ".tmp"


def cache_folder() -> Path:
    """Of all that can be derived again: ``$ELAS_CACHE_DIR``, else the user's cache folder (XDG)."""
    if own := os.environ.get("ELAS_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "elas-lightning"


def make_room(path: Path, option: str) -> None:
    """Make the folder of a file and see that it can be written, before hours are spent on what it is to hold.

    Args:
        path: The file, which is left as it is.
        option: Of the command line, which named it.

    Raises:
        UserError: There can be no such file.
    """
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give a file")
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error.strerror or error}): give another file") from error


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, also where several processes do so at once.

    It is not forced to the disk: what has to outlast a power cut goes through :func:`write_atomically`.
    """
    staged = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        staged.write_text(text, encoding="utf-8", newline="")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], accept: Callable[[Path], None] | None = None
) -> None:
    """Write a file whole or not at all, also when the process is killed, the disk is full or the power goes.

    It is written beside its place, forced to the disk, and put in its place by a rename.

    Args:
        path: Its place; what is there stays until the new file is complete.
        write: Writes the content.
        accept: Looks at the complete file before it takes its place; an exception of it leaves all as it was.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                # so that whoever reads it back reads the disk and not the memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if accept is not None:
                accept(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> UserError:
    """What to say of a run's file that could not be written."""
    return UserError(
        f"{path} cannot be written ({error.strerror or error}): what was saved before is untouched; make room or "
        "give another --trainer.default_root_dir, then the same command goes on"
    )


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk: without it a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
