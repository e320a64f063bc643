"""The low-rank FFN for a few tokens: bytes of ``down`` that only zeros would meet are not read.

A program makes the hidden features of one tile of features, loads the rows of ``down`` that some token needs, and
writes its share of the sum; the shares are added by the library, in one order, so that results repeat.

Shape suffixes: t tokens, R rank, F hidden features, O output rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.kernels.products import dot, product, to_multiple, upcast, whole_groups
from elas_lightning.ops.kernels.selection import activate, join_members, member_major, select
from elas_lightning.ops.kernels.tiles import decode_out, decode_tiles


@triton.jit
def decode_kernel(
    z_ptr,
    up_ptr,
    down_ptr,
    out_ptr,
    tokens,
    groups,
    rank,
    out_rank,
    stride,
    BY_ROWS: tl.constexpr,
    SPARSE: tl.constexpr,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
    BO: tl.constexpr,
):
    """One program's share of ``S(relu(z upᵀ)**2) down`` in float32; ``stride`` is that of down's slower axis."""
    DTYPE: tl.constexpr = z_ptr.dtype.element_ty
    t = tl.arange(0, BT)
    f = member_major(tl.program_id(0) * BG, BG)
    x = product(z_ptr, up_ptr, t, f, tokens, groups * 4, rank, UPCAST, BK)
    _, hidden = activate(x, DTYPE)
    hidden = join_members(*select(hidden, SPARSE))
    # NaN is not zero: its rows are read, and it stays visible
    needed = (tl.max((hidden != 0).to(tl.int32), axis=0) > 0) & (f < groups * 4)
    for start in range(0, out_rank, BO):
        o = start + tl.arange(0, BO)
        places = f[:, None] * stride + o[None, :] if BY_ROWS else f[:, None] + o[None, :] * stride
        down = tl.load(down_ptr + places, mask=needed[:, None] & (o < out_rank)[None, :], other=0.0)
        share = dot(hidden, down, tl.zeros((BT, BO), tl.float32), UPCAST)
        out = out_ptr + (tl.program_id(0) * tokens + t[:, None]) * out_rank + o[None, :]
        tl.store(out, share, mask=(t < tokens)[:, None] & (o < out_rank)[None, :])


def decode(z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
    """``S(relu(z upᵀ)**2) down``, or without S, for at most 16 tokens; ``down`` in rows, or transposed."""
    up_FR, down_FO = whole_groups(up_FR, down_FO)
    (tokens, out_rank), features = (z_tR.shape[0], down_FO.shape[1]), up_FR.shape[0]
    tiles = decode_tiles(z_tR.dtype)
    by_rows = down_FO.stride(1) == 1
    if not by_rows and down_FO.stride(0) != 1:
        down_FO, by_rows = down_FO.contiguous(), True
    z_tR, up_FR = to_multiple(tiles.depth, z_tR, up_FR)
    programs = triton.cdiv(features // 4, tiles.groups)
    shares = z_tR.new_empty((programs, tokens, out_rank), dtype=torch.float32)
    if tokens:
        decode_kernel[(programs,)](
            z_tR,
            up_FR,
            down_FO,
            shares,
            tokens,
            features // 4,
            z_tR.shape[1],
            out_rank,
            down_FO.stride(0 if by_rows else 1),
            BY_ROWS=by_rows,
            SPARSE=sparse,
            UPCAST=upcast(z_tR.dtype),
            BO=decode_out(z_tR.dtype),
            **tiles.launch,
        )
    return shares.sum(0).to(z_tR.dtype)
