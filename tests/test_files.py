"""Files that are whole or not there."""

from pathlib import Path

import pytest

from elas_lightning.errors import UserError
from elas_lightning.files import make_room, write_whole


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "whole\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half \ud800")
    assert path.read_bytes() == b"whole\n"
    assert list(tmp_path.iterdir()) == [path]


def test_room_is_made_for_a_file_that_is_then_as_it_was(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "folder/new.json"
    old.write_text("{}")
    for path in (old, new):
        make_room(path, "--json")
    assert old.read_text() == "{}"
    assert new.parent.is_dir()
    assert not new.exists()
    with pytest.raises(UserError, match=r"--json .*old.json/new.json cannot be written .*: give another file"):
        make_room(old / "new.json", "--json")
    with pytest.raises(UserError, match=r"--json .*folder is a folder: give a file"):
        make_room(new.parent, "--json")
