"""GaLore: Adam on full-rank matrices, its moments kept in a low-rank subspace of their gradients.

Shape suffixes: M rows, N columns, S the smaller and L the larger of the two, R rank of the subspace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elas_lightning.training.optimizers.blocks import BlockOptimizer
from elas_lightning.training.optimizers.moments import adam_direction
from elas_lightning.training.optimizers.whole import whole_matrix


def subspace(gradient_MN: Tensor, rank: int) -> Tensor:
    """The directions along the smaller dimension in which a gradient is largest (arXiv 2403.03507, section 4).

    Args:
        gradient_MN: Of a matrix.
        rank: R.

    Returns:
        ``(S, R)``, orthonormal columns: the first left singular vectors of a wide matrix, right ones of a tall
        one. Found in float32 where the gradient is narrower.
    """
    wide_SL = gradient_MN if gradient_MN.shape[0] <= gradient_MN.shape[1] else gradient_MN.T
    wide_SL = wide_SL.to(torch.promote_types(wide_SL.dtype, torch.float32))
    left_SS, _, _ = torch.linalg.svd(wide_SL, full_matrices=False)
    return left_SS[:, :rank].to(gradient_MN.dtype).contiguous()


class GaLore(BlockOptimizer):
    """GaLore (arXiv 2403.03507) on every matrix of the blocks, AdamW on the rest.

    Kept: the subspace of the smaller dimension, found anew from the current gradient every ``update_every``
    steps; Adam inside it, with moments that outlive a change of subspace; the factor α on the way back. Not
    kept: 8-bit moments and the update inside backward, which save memory and change little or nothing of
    the result. Adam's ε stands where torch puts it, beside the corrected second moment.
    The authors' library (galore-torch 1.0) is not used: it requires bitsandbytes, and keeps an object in its
    state that a weights-only checkpoint cannot hold.

    Where parameters are sharded a matrix is gathered for its step, and its subspace and moments, which are small, lie
    on every process (``whole.py``).

    Args:
        adamw: Built on what it is to update.
        group: The matrices, with their ``lr`` and ``weight_decay``.
        rank: R, below the smaller dimension of each matrix.
        update_every: Steps for which a subspace is kept.
        scale: α.
        betas: Decay of Adam's two moments.
        eps: Adam's denominator term.
    """

    def __init__(
        self,
        adamw: torch.optim.AdamW,
        group: dict[str, Any],
        *,
        rank: int,
        update_every: int,
        scale: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        own = {"rank": rank, "update_every": update_every, "scale": scale, "betas": betas, "eps": eps}
        super().__init__(adamw, [{**group, **own, "rule": "galore"}])

    def _step_blocks(self) -> None:
        for group in self.groups("galore"):
            for weight in group["params"]:
                if weight.grad is not None:
                    with whole_matrix(weight, self.state[weight]) as (matrix, state):
                        self._update(matrix, state, group)

    def _update(self, weight_MN: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        gradient_MN = weight_MN.grad
        assert gradient_MN is not None
        if "projector" not in state or int(state["step"]) % group["update_every"] == 0:
            state["projector"] = subspace(gradient_MN, group["rank"])
        projector_SR = state["projector"]
        weight_MN.mul_(1 - group["lr"] * group["weight_decay"])
        rate = -group["lr"] * group["scale"]
        if weight_MN.shape[0] <= weight_MN.shape[1]:
            step_RL = adam_direction(projector_SR.T @ gradient_MN, state, betas=group["betas"], eps=group["eps"])
            weight_MN.addmm_(projector_SR, step_RL, alpha=rate)
        else:
            step_LR = adam_direction(gradient_MN @ projector_SR, state, betas=group["betas"], eps=group["eps"])
            weight_MN.addmm_(step_LR, projector_SR.T, alpha=rate)
