"""How rows go from one number of processes to another."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.training.checkpoints import TornCheckpoint, take_up, verify
from elas_lightning.training.folder_checkpoints import files_of, put_together, rows_of, shard_name, take_apart
from elas_lightning.training.module import ElasModule


@pytest.mark.parametrize("before", [1, 2, 3, 5])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 3, 6, 10])
def test_rows_are_shared_out_anew_as_torch_chunks_them(before: int, after: int, rows: int) -> None:
    whole = torch.arange(rows * 2).view(rows, 2)
    pieces = [rows_of([whole], rank, before)[0] for rank in range(before)]
    assert torch.equal(torch.cat(pieces), whole)
    expected = [*whole.chunk(after), *[whole[:0]] * after][:after]
    for rank in range(after):
        found, shape = rows_of(pieces, rank, after)
        assert torch.equal(found, expected[rank])
        assert shape == whole.shape


def test_a_folder_is_put_together_from_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    weight, moment = torch.randn(5, 2), torch.randn(5)
    content = {
        "state_dict": {"w": torch.empty(0), "count": torch.tensor(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.empty(0)}}, "param_groups": [{"params": [0]}]}],
    }
    torch.save(content, folder / "whole.pt")
    for rank in range(2):
        shard = {"/state_dict/w": weight.chunk(2)[rank], "/optimizer_states/0/state/0/exp_avg": moment.chunk(2)[rank]}
        torch.save(shard, folder / shard_name(rank, 2))
    verify(folder)
    found = put_together(folder)
    assert torch.equal(found["state_dict"]["w"], weight)
    assert found["state_dict"]["count"] == 3
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], moment)
    assert found["optimizer_states"][0]["param_groups"] == [{"params": [0]}]


def test_files_of_two_steps_are_no_checkpoint(tmp_path: Path) -> None:
    """What a copy made while training saves may come to."""
    for step in (4, 8):
        folder = tmp_path / f"{step}"
        folder.mkdir()
        whole, rows = take_apart({"global_step": step, "state_dict": {"w": torch.ones(2)}})
        torch.save(whole, folder / "whole.pt")
        for rank in range(2):
            torch.save(rows, folder / shard_name(rank, 2))
        verify(folder)
    shutil.copy(tmp_path / "4" / shard_name(1, 2), tmp_path / "8")
    with pytest.raises(TornCheckpoint, match=r"8 cannot be read \(its files are of steps 4 and 8\)"):
        verify(tmp_path / "8")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_previous_one_is_not_the_newest_whatever_its_date(tmp_path: Path, kind: str) -> None:
    """A clock was set back, or the run was copied."""
    for name, age in (("last.ckpt", 9), ("previous.ckpt", 1)):
        if kind == "folder":
            _write(tmp_path / name, age)
        else:
            torch.save({}, tmp_path / name)
            os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert take_up(tmp_path) == tmp_path / "last.ckpt"


def test_what_is_no_checkpoint_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("")
    assert files_of(tmp_path) == files_of(tmp_path / "missing") == []
    with pytest.raises(UserError, match=r"there is no checkpoint .*; give the path of a \*\.ckpt file"):
        verify(tmp_path)


def _write(folder: Path, age: float) -> list[Path]:
    """A checkpoint of two processes, some seconds old."""
    folder.mkdir()
    names = ["whole.pt", shard_name(0, 2), shard_name(1, 2)]
    for name in names:
        torch.save({}, folder / name)
    os.utime(folder, (1e9 - age, 1e9 - age))
    return [folder / name for name in names]


@pytest.mark.parametrize("left", range(3))
@pytest.mark.parametrize("which", ["last", "previous"])
def test_a_half_removed_folder_costs_no_run(tmp_path: Path, which: str, left: int) -> None:
    """Removing files makes a folder the newest, whichever it is."""
    files = {name: _write(tmp_path / f"{name}.ckpt", age) for name, age in (("previous", 9), ("last", 1))}
    for file in files[which][left:]:
        file.unlink()
    other = tmp_path / ("previous.ckpt" if which == "last" else "last.ckpt")
    assert take_up(tmp_path) == other
    if which == "last":  # what is left of a previous one stands in nobody's way: the next save removes it
        assert (tmp_path / "last.torn").is_dir()


def test_a_folder_may_be_torn_twice(tmp_path: Path) -> None:
    _write(tmp_path / "previous.ckpt", 9)
    for _ in range(2):
        _write(tmp_path / "last.ckpt", 1)[1].unlink()
        assert take_up(tmp_path) == tmp_path / "previous.ckpt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.torn", "previous.ckpt"]


@pytest.mark.parametrize("name", ["last.ckpt", "last.ckpt/whole.pt", "."])
def test_lightnings_own_loading_says_what_reads_a_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    whole, rows = take_apart({"global_step": 4, "state_dict": {"w": torch.ones(2)}})
    torch.save(whole, folder / "whole.pt")
    torch.save(rows, folder / shard_name(0, 1))
    with pytest.raises(UserError, match=r"elas_lightning\.inference\.load\.load_model takes the folder"):
        ElasModule.load_from_checkpoint(tmp_path / name, weights_only=True)
