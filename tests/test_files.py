"""Files that are whole or not there."""

from pathlib import Path

import pytest

from elas_lightning.files import write_whole


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "whole\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half \ud800")
    assert path.read_bytes() == b"whole\n"
    assert list(tmp_path.iterdir()) == [path]
