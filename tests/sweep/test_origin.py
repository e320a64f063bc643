"""Whether a process is still there, and still the same one."""

import subprocess
import sys
import time

from elas_lightning.sweep import origin


def _sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_process_of_this_machine_is_there_until_it_is_gone() -> None:
    sleeper = _sleeper()
    described = {**origin.here(), "pid": sleeper.pid, "started": origin._started(sleeper.pid)}
    assert not origin.is_gone(described)
    sleeper.kill()
    deadline = time.monotonic() + 60
    while not origin.is_gone(described):  # a zombie, which nobody has asked for its exit code yet, is gone
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sleeper.wait()
    assert origin.is_gone(described)


def test_another_process_with_the_same_number_is_another() -> None:
    assert not origin.is_gone(origin.here())
    assert origin.is_gone({**origin.here(), "started": "1"})


def test_nothing_is_known_of_other_machines_and_of_trials_without_a_worker() -> None:
    assert not origin.is_gone({**origin.here(), "machine": "elsewhere", "started": "1"})
    assert not origin.is_gone(None)


def test_a_name_with_brackets_does_not_confuse() -> None:
    code = "import ctypes,time; ctypes.CDLL(None).prctl(15, b'a) Z (b', 0, 0, 0); time.sleep(60)"
    sleeper = subprocess.Popen([sys.executable, "-c", code])
    try:
        started = origin._started(sleeper.pid)
        time.sleep(0.3)
        assert origin._started(sleeper.pid) == started is not None
    finally:
        sleeper.kill()
        sleeper.wait()
