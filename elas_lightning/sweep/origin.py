"""Which process on which machine has a trial, and whether it is still there."""

import os
import socket
from functools import cache
from pathlib import Path
from typing import Any


def here() -> dict[str, Any]:
    """This process, so that it can be told from a later one with the same number."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(process: dict[str, Any] | None) -> bool:
    """Whether a process is known to be gone: it was on this machine and is not there any more.

    Of other machines nothing is known; their processes give signs of life in the storage.
    """
    if process is None or process["machine"] != _machine():
        return False
    return _started(process["pid"]) != process["started"]


@cache
def _machine() -> str:
    """Name, boot and process namespace: two containers with one name are not taken for each other, nor is a
    machine for itself before it was started again."""
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists():
        parts.append(boot.read_text().strip())
    if namespace.exists():
        parts.append(os.readlink(namespace))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's words; ``None`` if there is none or it is only a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            # the name in brackets may hold spaces and brackets
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "there"
