"""Muon on the matrices of the blocks: momentum whose singular values are all made alike."""

from __future__ import annotations

from typing import Any

import torch

from elas_lightning.training.optimizers.blocks import BlockOptimizer
from elas_lightning.training.optimizers.whole import whole_matrix


class Muon(BlockOptimizer):
    """``torch.optim.Muon`` on every matrix of the blocks, AdamW on the rest.

    Muon (K. Jordan et al. 2024) was made for full-rank hidden matrices. Here it moves each factor of a low-rank
    layer by itself, which is our choice and no paper's: with Adam, a factor's update is as skewed as its
    gradient, and a rank of R then learns in a few directions; an orthogonal update uses all R.

    An orthogonal ``(m, n)`` matrix has entries of root mean square ``1/√max(m, n)``. It is scaled by
    ``0.2 √max(m, n)`` (arXiv 2502.16982), so that its entries are as large as those that Adam's updates usually
    have, whatever the shape. The rate and its ratio for blocks then mean what they mean for AdamW, and both
    factors of a layer, wide or tall, move alike at every size. The Newton-Schulz iteration is torch's and runs
    in bfloat16 on every device.

    Where parameters are sharded a matrix and its momentum are gathered for its step (``whole.py``).

    Args:
        adamw: Built on what it is to update.
        group: The matrices, with their ``lr`` and ``weight_decay``.
        momentum: Decay of the running average of gradients (Nesterov's form).
        ns_steps: Newton-Schulz iterations.
    """

    def __init__(self, adamw: torch.optim.AdamW, group: dict[str, Any], *, momentum: float, ns_steps: int) -> None:
        self._muon = torch.optim.Muon(
            [{**group, "rule": "muon"}], momentum=momentum, ns_steps=ns_steps, adjust_lr_fn="match_rms_adamw"
        )
        super().__init__(adamw, self._muon.param_groups)

    def _step_blocks(self) -> None:
        for group in self.groups("muon"):
            for weight in group["params"]:
                if weight.grad is not None:
                    with whole_matrix(weight, self.state[weight]) as (matrix, state):
                        self._muon.param_groups = [{**group, "params": [matrix]}]
                        self._muon.state = {matrix: state}  # type: ignore[assignment]
                        self._muon.step()
