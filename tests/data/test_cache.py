import errno
import os
import threading
import time
from pathlib import Path

import pytest

from elas_lightning.data.cache import build_once, cache_root
from elas_lightning.errors import UserError


def test_the_folder_is_the_argument_then_elas_then_xdg_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ELAS_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / "home/.cache/elas-lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/elas-lightning"
    monkeypatch.setenv("ELAS_CACHE_DIR", str(tmp_path / "elas"))
    assert cache_root() == tmp_path / "elas"
    assert cache_root(str(tmp_path / "own")) == tmp_path / "own"
    assert (tmp_path / "own").is_dir()


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir: cannot make the folder .*file/cache"):
        cache_root(str(tmp_path / "file/cache"))


def test_two_at_once_build_once(tmp_path):
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("whole")
        time.sleep(0.2)  # long enough for the other to arrive

    threads = [threading.Thread(target=build_once, args=(tmp_path / "entry", build)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert (tmp_path / "entry/a").read_text() == "whole"


def test_nothing_is_left_of_a_build_that_fails(tmp_path):
    def build(folder: Path) -> None:
        (folder / "a").touch()
        raise RuntimeError("killed half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        build_once(tmp_path / "entry", build)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    build_once(tmp_path / "entry", lambda folder: (folder / "a").touch())
    assert (tmp_path / "entry/a").exists()


def test_a_cache_that_cannot_be_written_to_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir: .*entry cannot be made \(.*\); name a folder with room"):
        build_once(tmp_path / "file/entry", lambda folder: None)
    with pytest.raises(UserError, match="No space left on device"):
        build_once(tmp_path / "entry", full)
    assert not (tmp_path / "entry").exists()


def full(folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
