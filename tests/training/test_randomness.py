"""The random state of a run travels with its checkpoint, in plain types, for each rank."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from elas_lightning.training import randomness
from elas_lightning.training.randomness import RandomStates


def _draw() -> tuple[float, float, float, float]:
    return torch.rand(1).item(), np.random.rand(), random.random(), np.random.normal()  # noqa: NPY002


def test_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    _draw()  # an odd number of normals leaves one in store
    torch.save(RandomStates().state_dict(), tmp_path / "state")
    following = [_draw() for _ in range(3)]
    resumed = RandomStates()
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    torch.manual_seed(7)  # what a start draws and sets is of no account
    resumed.on_train_batch_start(None, None, None, 0)  # type: ignore[arg-type]
    assert [_draw() for _ in range(3)] == following
    resumed.on_train_batch_start(None, None, None, 1)  # type: ignore[arg-type]
    assert _draw() not in following


def test_each_rank_has_its_own_and_new_ranks_keep_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ranks += RandomStates().state_dict()["ranks"]
    for rank, expected in ((1, 2), (2, 99)):
        torch.manual_seed(99)
        monkeypatch.setattr(randomness, "rank_and_world_size", lambda rank=rank: (rank, 3))
        resumed = RandomStates()
        resumed.load_state_dict({"ranks": ranks})
        resumed.on_train_batch_start(None, None, None, 0)  # type: ignore[arg-type]
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(expected)))
