"""Finding overlays, sweeps and places for runs."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elas_lightning.errors import UserError
from elas_lightning.layout import hold, new_run_directory, overlay_path, shipped_folder, sweep_folder, sweep_path


def test_the_working_directorys_folder_comes_before_the_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (shipped_folder("experiments") / "sizes" / "tiny.yaml").is_file()
    (tmp_path / "experiments").mkdir()
    assert shipped_folder("experiments").resolve() == tmp_path / "experiments"


def test_an_unknown_overlay_lists_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"no overlay .*sizes/61m\.yaml: choose one of .*60m.*tiny"):
        overlay_path("sizes/61m")


def test_an_unknown_sweep_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no sweep named 'rnak': choose one of .*rank_ablation"):
        sweep_path("rnak")


def test_a_sweep_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert sweep_path(str(mine)) == mine
    with pytest.raises(UserError, match="no file"):
        sweep_path(str(tmp_path / "other.yaml"))


def test_asked_for_sizes_and_data_have_folders_of_their_own() -> None:
    assert sweep_folder("rank_ablation", None, None) == Path("runs/rank_ablation")
    assert sweep_folder("some/rank_ablation.yaml", "60m", "c4") == Path("runs/rank_ablation_60m_c4")


def test_run_directories_are_numbered_and_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [new_run_directory("fit").name for _ in range(3)] == ["000", "001", "002"]
    (tmp_path / "runs/fit/mine").mkdir()
    assert new_run_directory("fit").name == "003"


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
from elas_lightning.layout import hold
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
