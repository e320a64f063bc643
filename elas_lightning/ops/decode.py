"""The FFN for one or a few tokens without gradients: rows of ``down`` that no token needs are not read.

Decoding reads each weight for a few multiplications, so bytes are its time. Squared ReLU and 2:4 leave many hidden
features zero, and the row of ``down`` that such a feature would scale need not be read. That takes ``down`` in row
order: in the order of ``torch.nn.Linear`` a row is spread over as many cache lines as it has entries.

Shape suffixes: t tokens, R rank, F hidden features, O output rank, L features that some token needs; "..." leading.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.ops.backend import autocast_dtype, check_kernel_dtype, resolve_backend
from elas_lightning.ops.sparsify import relu2_sparsify_24

# The kernel's tile of tokens. With more, few features are zero for all of them.
DECODE_TOKENS = 16
# Measured on a CPU (docs/decisions.md): a gathered row costs this many times as much as one in the plain product,
_GATHER_COST = 5
# and with fewer entries of ``down`` than this, counting rows costs more than skipping them saves.
_WORTH_COUNTING = 2**22


def lowrank_ffn_decode(
    z: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    sparsity: Literal["2:4"] | None = "2:4",
    backend: str = "auto",
    down_rows: Tensor | None = None,
) -> Tensor:
    """``S(relu(z upᵀ)**2) down`` for a few tokens, as ``lowrank_ffn`` to rounding; has no gradient.

    Args:
        z: ``(..., R)``, at most ``DECODE_TOKENS`` tokens.
        up: ``(F, R)``.
        down: ``(F, O)``, finite; a transposed view is fine.
        sparsity: ``2:4`` or None, as in ``lowrank_ffn``.
        backend: ``triton`` for one kernel; ``auto`` and ``reference`` are plain PyTorch, which gathers rows on a CPU
            when few are needed, and multiplies by all of them elsewhere: counting would make a GPU wait.
        down_rows: The same numbers as ``down``, contiguous, kept by a caller who decodes often. None: ``down``
            itself if it is contiguous, else plain PyTorch gathers nothing.

    Returns:
        ``(..., O)``.

    Raises:
        ValueError: Too many tokens, or shapes that do not fit.
        UserError: A backend that cannot run here or does not decode (a ValueError, too).
    """
    tokens = z.numel() // max(1, z.shape[-1])
    if tokens > DECODE_TOKENS:
        raise ValueError(f"decoding takes at most {DECODE_TOKENS} tokens, not {tokens}: use lowrank_ffn")
    rows = down if down_rows is None and down.is_contiguous() else down_rows
    if up.dim() != 2 or z.shape[-1:] != up.shape[1:] or down.shape[:1] != up.shape[:1]:
        raise ValueError(
            f"z {tuple(z.shape)}, up {tuple(up.shape)}, down {tuple(down.shape)} do not fit: "
            "they must be (..., r), (d_ff, r), (d_ff, r_out)"
        )
    if rows is not None and (rows.shape != down.shape or not rows.is_contiguous()):
        raise ValueError(f"down_rows must be contiguous and {tuple(down.shape)} as down is, not {tuple(rows.shape)}")
    dtype = autocast_dtype(z)
    if dtype is not None:
        z, up, down = z.to(dtype), up.to(dtype), down.to(dtype)
        rows = None if rows is None else rows.to(dtype)
    # for a few tokens the sparse product would compute 128, so its backends decode by the Triton kernel, too
    kernel = resolve_backend(backend, z.device).chosen != "reference"
    if kernel:
        check_kernel_dtype(z)
    return decode_ffn(z, up, down if rows is None else rows, down, sparsity is not None, kernel)


def decode_pays(down: Tensor, backend: str) -> bool:
    """Whether ``lowrank_ffn_decode`` has something to skip: a kernel, or on a CPU a large enough ``down``."""
    return backend not in ("auto", "reference") or (down.device.type == "cpu" and down.numel() >= _WORTH_COUNTING)


@torch.library.custom_op("elas::decode_ffn", mutates_args=())
def decode_ffn(z: Tensor, up: Tensor, rows: Tensor, down: Tensor, sparse: bool, kernel: bool) -> Tensor:
    """What ``lowrank_ffn_decode`` computes.

    Args:
        z: ``(..., R)``.
        up: ``(F, R)``.
        rows: ``down`` in row order if there is such a copy, else ``down``.
        down: ``(F, O)``.
        sparse: Whether 2:4 comes before ``down``.
        kernel: Whether the Triton kernel computes it.

    Returns:
        ``(..., O)``.
    """
    z_tR = z.reshape(-1, z.shape[-1]).contiguous()
    if kernel:
        from elas_lightning.ops.kernels.decode import decode

        out_tO = decode(z_tR, up.contiguous(), rows, sparse)
    else:
        out_tO = _plain(z_tR, up, rows, down, sparse)
    return out_tO.reshape(*z.shape[:-1], down.shape[1]).clone()


@decode_ffn.register_fake
def _(z: Tensor, up: Tensor, rows: Tensor, down: Tensor, sparse: bool, kernel: bool) -> Tensor:
    return z.new_empty((*z.shape[:-1], down.shape[1]))


def _plain(z_tR: Tensor, up_FR: Tensor, rows_FO: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
    pre_tF = F.linear(z_tR, up_FR)
    relu_tF = pre_tF.relu()
    hidden_tF = relu2_sparsify_24(pre_tF, backend="reference") if sparse else relu_tF * relu_tF
    if z_tR.device.type == "cpu" and rows_FO.is_contiguous():
        needed_F = hidden_tF.ne(0).any(0)
        if _GATHER_COST * int(needed_F.count_nonzero()) <= needed_F.numel():
            needed_L = needed_F.nonzero().squeeze(1)
            return hidden_tF[:, needed_L] @ rows_FO.index_select(0, needed_L)
    return F.linear(hidden_tF, down_FO.t())
