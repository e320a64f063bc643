"""The steps of ``ops/storage.py`` by the kernels of this folder; dense steps are Triton's.

Shape suffixes: t tokens of a chunk, R rank, F hidden features, O output rank.
"""

from __future__ import annotations

import sys

from torch import Tensor

from elas_lightning.ops.hopper import ffn
from elas_lightning.ops.steps import TritonSteps


class HopperSteps(TritonSteps):
    """``hopper``. Nothing can be kept packed: backward computes again, which takes no longer than to read."""

    backend = "hopper"

    def most_tokens(self, up_FR: Tensor, down_FO: Tensor, sparse: bool, backward: bool) -> int:
        if not sparse:
            return super().most_tokens(up_FR, down_FO, sparse, backward)
        if not backward and max(up_FR.shape[1], down_FO.shape[1]) <= ffn.FUSED_RANK:
            return sys.maxsize  # no workspace
        return self.within_workspace(up_FR)

    def own_down(self, down_FO: Tensor) -> Tensor:
        return down_FO if down_FO.t().is_contiguous() else down_FO.t().contiguous().t()

    def forward(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
        if not sparse:
            return super().forward(z_tR, up_FR, down_FO.contiguous(), sparse)
        return ffn.forward(z_tR, up_FR, down_FO.t())

    def hidden_backward(
        self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_tO: Tensor, sparse: bool, masked: bool
    ) -> tuple[Tensor, Tensor]:
        if not sparse:
            return super().hidden_backward(z_tR, up_FR, down_FO, grad_tO, sparse, masked)
        return ffn.hidden_backward(z_tR, up_FR, down_FO, grad_tO, masked)
