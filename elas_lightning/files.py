"""Files that are whole or not there, for those who read them while another process writes; and where a cache lies."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Of all that can be derived again: ``$ELAS_CACHE_DIR``, else the user's cache folder (XDG)."""
    if own := os.environ.get("ELAS_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "elas-lightning"


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
