"""The random state travels with the checkpoint, so that whatever draws numbers draws on where it stopped.

Our own methods need none of it (their noise is a function of seed and place); callbacks and models of others may.
"""

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from elas_lightning.ranks import of_every_rank, rank_and_world_size

States = dict[str, Any]


class RandomStates(L.Callback):
    """Saves the global generators of ``torch``, CUDA, ``numpy`` and ``random``, of each rank, and gives them back.

    They are given back just before the first batch: what the start of a run draws (a loader's seed for its workers,
    say) was drawn by the unbroken run, too, but before the checkpoint. It must be the first of the callbacks. With
    another number of ranks, those that there were before go on with their own states, and new ones with their seed's.
    """

    def __init__(self) -> None:
        self._waiting: States | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": of_every_rank(_states())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks, (mine, _) = state_dict["ranks"], rank_and_world_size()
        self._waiting = ranks[mine] if mine < len(ranks) else None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._waiting is not None:
            _restore(self._waiting)
            self._waiting = None


def _states() -> States:
    """Of this process, as tensors and plain types, which load without unpickling code."""
    # the global generator is what there is to save
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]],
        "python": random.getstate(),
    }


def _restore(states: States) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])
