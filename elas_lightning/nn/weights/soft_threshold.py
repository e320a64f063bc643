"""2:4 weights by a continuous soft threshold: S-STE (arXiv 2409.09099).

Shape suffixes: O output features, I input features, G groups of four inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elas_lightning.nn.weights.rule import WeightRule, straight_through


def soft_threshold_24(weight_OI: Tensor) -> Tensor:
    """Shrink every four inputs of an output by the third largest of their magnitudes.

    Two of four become zero, and unlike a choice of two, the result moves continuously with the weight: where two
    magnitudes meet and swap, both are zero.

    Args:
        weight_OI: Inputs beyond the last whole group pass.

    Returns:
        ``(O, I)``, 2:4 along I.
    """
    whole = weight_OI.shape[1] // 4 * 4
    groups = weight_OI[:, :whole].unflatten(1, (-1, 4))
    magnitude = groups.abs()
    threshold_OG1 = magnitude.sort(2).values[..., 1:2]
    shrunk = groups.sign() * (magnitude - threshold_OG1).clamp(min=0)
    return torch.cat((shrunk.flatten(1), weight_OI[:, whole:]), 1)


class SoftThreshold(WeightRule):
    """``β soft_threshold_24(W)`` with the identity for its gradient and β fixed at the start.

    β makes the start's sparse weight the best approximation of the dense one in the mean square:
    ``β = <W, S(W)> / <S(W), S(W)>``. The paper freezes it, since a β that followed the weights oscillated.
    """

    scale: Tensor

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        weight_OI = weight_OI.detach()
        sparse_OI = soft_threshold_24(weight_OI)
        self.register_buffer("scale", (weight_OI * sparse_OI).sum() / sparse_OI.square().sum())

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The sparse weight."""
        with torch.no_grad():
            sparse_OI = self.scale * soft_threshold_24(weight_OI)
        return straight_through(weight_OI, sparse_OI)
