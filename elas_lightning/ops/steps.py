"""The steps that ``ops/storage.py`` is made of, once for every backend, all with the same methods.

A class a backend, without state; those of the hardware's sparse product are in ``ops/cusparselt.py``.

Shape suffixes: t tokens of a chunk, R rank, F hidden features, O output rank, K = F / 2, M = F / 8.
"""

from __future__ import annotations

import sys
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.ops.packing import pack_24, unpack_24
from elas_lightning.ops.reference import keep_mask_24, zero_dropped

# What the d_ff-wide workspaces of one chunk may have: of a GPU's memory one part in so many, else so many bytes. Chunks
# cost launches and sums, so they are as large as nobody minds.
_WORKSPACE_SHARE = 32
_WORKSPACE = 2**29


@cache
def _workspace(device: torch.device) -> int:
    if device.type != "cuda":
        return _WORKSPACE
    return int(torch.cuda.get_device_properties(device).total_memory) // _WORKSPACE_SHARE


class PlainSteps:
    """Plain PyTorch: the specification of the others. Matrices come in contiguous, ``down`` as ``own_down`` has it."""

    backend = "reference"

    def most_tokens(self, up_FR: Tensor, down_FO: Tensor, sparse: bool, backward: bool) -> int:
        """How many tokens a chunk may have where that is more than the usual (``ops/storage.py``); 0 if it is not."""
        return 0

    def most_kept_tokens(self, up_FR: Tensor) -> int:
        """The same where hidden features are kept; forward and backward must then agree."""
        return 0

    def empty_kept(self, like: Tensor, tokens: int, features: int) -> tuple[Tensor, Tensor]:
        """Room for the packed hidden features of so many tokens, to be filled chunk by chunk along the first axis."""
        values_TK = like.new_empty((tokens, features // 2))
        return values_TK, like.new_empty((tokens, features // 8), dtype=torch.uint8)

    def own_down(self, down_FO: Tensor) -> Tensor:
        """``down`` in the memory order that ``forward`` takes."""
        return down_FO.contiguous()

    def forward(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
        """``S(relu(z upᵀ)**2) down``, or the same without S."""
        relu_tF = F.linear(z_tR, up_FR).relu()
        hidden_tF = relu_tF * relu_tF  # autocast computes squares in float32
        if sparse:
            hidden_tF = zero_dropped(hidden_tF, keep_mask_24(hidden_tF, 1))
        return hidden_tF @ down_FO

    def forward_keeping(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, values: Tensor, meta: Tensor) -> Tensor:
        """The sparse forward, with its packed hidden features written into a chunk of ``empty_kept``."""
        self._pack_hidden(z_tR, up_FR, values, meta)
        return unpack_24(values, meta, backend=self.backend) @ down_FO

    def unpack(self, values: Tensor, meta: Tensor, tokens: int, features: int) -> Tensor:
        """The hidden features ``(t, F)`` of a chunk of what was kept."""
        return unpack_24(values, meta, backend=self.backend)

    def hidden_backward(
        self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_tO: Tensor, sparse: bool, masked: bool
    ) -> tuple[Tensor, Tensor]:
        """The hidden features again, and the gradient of their pre-activations, both ``(t, F)``."""
        relu_tF = F.linear(z_tR, up_FR).relu()
        hidden_tF = relu_tF * relu_tF
        grad_tF = F.linear(grad_tO, down_FO).mul_(relu_tF).mul_(2)
        if sparse:
            keep_tF = keep_mask_24(hidden_tF, 1)
            hidden_tF = zero_dropped(hidden_tF, keep_tF)
            if masked:
                grad_tF = zero_dropped(grad_tF, keep_tF)
        return hidden_tF, grad_tF

    def kept_backward(
        self, values: Tensor, meta: Tensor, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_tO: Tensor, masked: bool
    ) -> tuple[Tensor, Tensor]:
        """What ``hidden_backward`` returns, from a chunk of what was kept.

        The masked gradient needs no second product with ``up``, since ``relu(x) = sqrt(h)`` where h was kept.
        """
        hidden_tF = self.unpack(values, meta, z_tR.shape[0], up_FR.shape[0])
        relu_tF = hidden_tF.sqrt() if masked else F.linear(z_tR, up_FR).relu()
        return hidden_tF, F.linear(grad_tO, down_FO).mul_(relu_tF).mul_(2)

    def _pack_hidden(self, z_tR: Tensor, up_FR: Tensor, values_tK: Tensor, meta_tM: Tensor) -> None:
        relu_tF = F.linear(z_tR, up_FR).relu()
        packed = pack_24(relu_tF * relu_tF, backend=self.backend)
        values_tK.copy_(packed[0])
        meta_tM.copy_(packed[1])


class TritonSteps(PlainSteps):
    """The kernels of ``ops/kernels/ffn.py``."""

    backend = "triton"

    def most_tokens(self, up_FR: Tensor, down_FO: Tensor, sparse: bool, backward: bool) -> int:
        from elas_lightning.ops.kernels import ffn

        if not backward and ffn.is_fused(up_FR, down_FO):
            return sys.maxsize  # no workspace
        return self.within_workspace(up_FR)

    @staticmethod
    def within_workspace(up_FR: Tensor) -> int:
        """As many tokens as have room for two tensors that are d_ff wide."""
        return _workspace(up_FR.device) // (2 * up_FR.shape[0] * up_FR.element_size())

    def forward(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
        from elas_lightning.ops.kernels import ffn

        return ffn.forward(z_tR, up_FR, down_FO, sparse)

    def hidden_backward(
        self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_tO: Tensor, sparse: bool, masked: bool
    ) -> tuple[Tensor, Tensor]:
        from elas_lightning.ops.kernels import ffn

        return ffn.hidden_backward(z_tR, up_FR, down_FO, grad_tO, sparse, masked)

    def _pack_hidden(self, z_tR: Tensor, up_FR: Tensor, values_tK: Tensor, meta_tM: Tensor) -> None:
        from elas_lightning.ops.kernels import ffn

        ffn.hidden_packed(z_tR, up_FR, values_tK, meta_tM)
