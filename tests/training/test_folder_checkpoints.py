"""How rows go from one number of processes to another."""

from pathlib import Path

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.training.checkpoints import verify
from elas_lightning.training.folder_checkpoints import files_of, put_together, rows_of, shard_name


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
        shard = {
            "/state_dict/w": weight.chunk(2)[rank],
            "/optimizer_states/0/state/0/exp_avg": moment.chunk(2)[rank],
        }
        torch.save(shard, folder / shard_name(rank, 2))
    verify(folder)
    found = put_together(folder)
    assert torch.equal(found["state_dict"]["w"], weight)
    assert found["state_dict"]["count"] == 3
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], moment)
    assert found["optimizer_states"][0]["param_groups"] == [{"params": [0]}]


def test_what_is_no_checkpoint_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("")
    assert files_of(tmp_path) == files_of(tmp_path / "missing") == []
    with pytest.raises(UserError, match=r"there is no checkpoint .*; give the path of a \*\.ckpt file"):
        verify(tmp_path)
