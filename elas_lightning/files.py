"""Files that are whole or not there, for those who read them while another process writes."""

import os
from pathlib import Path


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
