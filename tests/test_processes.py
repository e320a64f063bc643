"""Holding a folder."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elas_lightning.errors import UserError
from elas_lightning.processes import hold


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        hold(tmp_path),
        pytest.raises(UserError, match=f"another process is at work in {tmp_path}: wait for it or stop it"),
        hold(tmp_path, wait_seconds=0.3),
    ):
        pass
    with hold(tmp_path):
        pass


def test_a_folder_is_waited_for(tmp_path: Path) -> None:
    leave = threading.Event()
    held = hold(tmp_path)
    held.__enter__()
    leaving = threading.Timer(0.3, lambda: (leave.set(), held.__exit__(None, None, None)))
    leaving.start()
    with hold(tmp_path, wait_seconds=30):
        assert leave.is_set()
    leaving.join()


def test_the_workers_of_a_killed_holder_do_not_hold(tmp_path: Path) -> None:
    holder = """
import multiprocessing, sys, time
from pathlib import Path
from elas_lightning.processes import hold
with hold(Path(sys.argv[1])):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        with pytest.raises(UserError, match="at work"), hold(tmp_path):
            pass
        process.kill()
        process.wait()
        try:
            with hold(tmp_path, wait_seconds=5):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)
