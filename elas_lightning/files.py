"""Files that are whole or not there, for those who read them while another process writes; and where a cache lies."""

import os
from pathlib import Path

from elas_lightning.errors import UserError


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

    It is not forced to the disk: what has to outlast a power cut goes through ``write_atomically``
    (``training/checkpoints.py``).
    """
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        staged.write_text(text, encoding="utf-8", newline="")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
