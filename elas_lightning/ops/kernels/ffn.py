"""The low-rank FFN between two rank-sized tensors, without its hidden features in memory.

It is attention without the softmax: ``z`` stands for the queries, the rows of ``up`` for the keys, those of
``down`` for the values. ``fused_kernel`` never writes the hidden features. Above ``largest_fused_rank`` its tiles
no longer fit, and ``hidden_kernel`` writes them once, already activated and selected, for a
library product. ``ops/storage.py`` calls these functions chunk by chunk and holds their gradients.

The four members of each group of features are four tiles (rows 4g, 4g + 1, ... of ``up``), see
``selection.py``. Products are accumulated in float32, and the pre-activation is rounded to the dtype before
the selection, as in the plain composition.

Shape suffixes: T tokens, R rank, F hidden features, G = F / 4 groups, O output rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.kernels.selection import join_groups, keep_24, pack_groups, relu, relu2
from elas_lightning.ops.kernels.tiles import (
    backward_tiles,
    fused_tiles,
    hidden_tiles,
    interpreted,
    largest_fused_rank,
    shared_memory,
)


@triton.jit
def dot(a, b, accumulator, UPCAST: tl.constexpr):
    """``accumulator + a @ b``, float32 in full precision."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def member_rows(w_ptr, group_offsets, MEMBER: tl.constexpr, width):
    """Pointers to row ``4g + MEMBER`` of a contiguous ``(F, width)`` matrix for each group g."""
    return w_ptr + (4 * group_offsets + MEMBER).to(tl.int64) * width


@triton.jit
def load_rows(rows, columns, rows_mask):
    """A tile ``(rows, columns)``, zero in rows that lie outside."""
    return tl.load(rows[:, None] + columns[None, :], mask=rows_mask[:, None], other=0.0)


@triton.jit
def group_products(
    x_ptr,
    w_ptr,
    token_offsets,
    group_offsets,
    token_mask,
    group_mask,
    width,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
):
    """``x @ w[m::4]ᵀ`` for the members m = 0 to 3: four float32 tiles (BT, BG) of contiguous x and w."""
    a = tl.zeros((BT, BG), tl.float32)
    b = tl.zeros((BT, BG), tl.float32)
    c = tl.zeros((BT, BG), tl.float32)
    d = tl.zeros((BT, BG), tl.float32)
    x_rows = x_ptr + token_offsets.to(tl.int64) * width
    for start in range(0, width, BK):
        k = start + tl.arange(0, BK)
        x = load_rows(x_rows, k, token_mask)
        w_a = load_rows(member_rows(w_ptr, group_offsets, 0, width), k, group_mask)
        w_b = load_rows(member_rows(w_ptr, group_offsets, 1, width), k, group_mask)
        w_c = load_rows(member_rows(w_ptr, group_offsets, 2, width), k, group_mask)
        w_d = load_rows(member_rows(w_ptr, group_offsets, 3, width), k, group_mask)
        a = dot(x, tl.trans(w_a), a, UPCAST)
        b = dot(x, tl.trans(w_b), b, UPCAST)
        c = dot(x, tl.trans(w_c), c, UPCAST)
        d = dot(x, tl.trans(w_d), d, UPCAST)
    return a, b, c, d


@triton.jit
def activate(a, b, c, d, DTYPE: tl.constexpr, SPARSE: tl.constexpr):
    """Round four tiles of pre-activations, square their ReLU, and zero what 2:4 drops."""
    a, b, c, d = relu2(a.to(DTYPE)), relu2(b.to(DTYPE)), relu2(c.to(DTYPE)), relu2(d.to(DTYPE))
    if SPARSE:
        keep_a, keep_b, keep_c, keep_d = keep_24(a, b, c, d)
        zero = tl.zeros_like(a)
        a, b = tl.where(keep_a, a, zero), tl.where(keep_b, b, zero)
        c, d = tl.where(keep_c, c, zero), tl.where(keep_d, d, zero)
    return a, b, c, d


@triton.jit
def fused_kernel(
    z_ptr,
    up_ptr,
    down_ptr,
    out_ptr,
    tokens,
    groups,
    SPARSE: tl.constexpr,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BR: tl.constexpr,
    BO: tl.constexpr,
):
    """``S(relu(z upᵀ)**2) down`` for BT tokens; BR and BO are the whole ranks."""
    DTYPE: tl.constexpr = z_ptr.dtype.element_ty
    token_offsets = tl.program_id(0) * BT + tl.arange(0, BT)
    token_mask = token_offsets < tokens
    r, o = tl.arange(0, BR), tl.arange(0, BO)
    z = load_rows(z_ptr + token_offsets.to(tl.int64) * BR, r, token_mask)
    out = tl.zeros((BT, BO), tl.float32)
    zero = tl.zeros((BT, BG), tl.float32)
    for start in range(0, groups, BG):
        g = start + tl.arange(0, BG)
        g_mask = g < groups
        up_a = load_rows(member_rows(up_ptr, g, 0, BR), r, g_mask)
        up_b = load_rows(member_rows(up_ptr, g, 1, BR), r, g_mask)
        up_c = load_rows(member_rows(up_ptr, g, 2, BR), r, g_mask)
        up_d = load_rows(member_rows(up_ptr, g, 3, BR), r, g_mask)
        a, b, c, d = activate(
            dot(z, tl.trans(up_a), zero, UPCAST),
            dot(z, tl.trans(up_b), zero, UPCAST),
            dot(z, tl.trans(up_c), zero, UPCAST),
            dot(z, tl.trans(up_d), zero, UPCAST),
            DTYPE,
            SPARSE,
        )
        f = start * 4 + tl.arange(0, 4 * BG)
        down = load_rows(down_ptr + f.to(tl.int64) * BO, o, f < groups * 4)
        out = dot(join_groups(a, b, c, d), down, out, UPCAST)
    out_rows = out_ptr + token_offsets.to(tl.int64) * BO
    tl.store(out_rows[:, None] + o[None, :], out.to(DTYPE), mask=token_mask[:, None])


@triton.jit
def hidden_kernel(
    z_ptr,
    up_ptr,
    hidden_ptr,
    meta_ptr,
    tokens,
    groups,
    rank,
    SPARSE: tl.constexpr,
    PACKED: tl.constexpr,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
):
    """``S(relu(z upᵀ)**2)`` written once: dense ``(T, F)``, or packed as values ``(T, F/2)`` and codes."""
    DTYPE: tl.constexpr = z_ptr.dtype.element_ty
    column_blocks = tl.cdiv(groups, BG)
    token_offsets = tl.program_id(0) // column_blocks * BT + tl.arange(0, BT)
    first_group = tl.program_id(0) % column_blocks * BG
    group_offsets = first_group + tl.arange(0, BG)
    token_mask, group_mask = token_offsets < tokens, group_offsets < groups
    a, b, c, d = group_products(
        z_ptr, up_ptr, token_offsets, group_offsets, token_mask, group_mask, rank,
        UPCAST, BT, BG, BK,
    )  # fmt: skip
    a, b, c, d = activate(a, b, c, d, DTYPE, SPARSE and not PACKED)
    rows = token_offsets.to(tl.int64)[:, None]
    if PACKED:
        values, meta = pack_groups(a, b, c, d)
        columns = first_group * 2 + tl.arange(0, 2 * BG)[None, :]
        tl.store(
            hidden_ptr + rows * (groups * 2) + columns,
            values,
            mask=token_mask[:, None] & (columns < groups * 2),
        )
        columns = first_group // 2 + tl.arange(0, BG // 2)[None, :]
        tl.store(
            meta_ptr + rows * (groups // 2) + columns,
            meta,
            mask=token_mask[:, None] & (columns < groups // 2),
        )
    else:
        columns = first_group * 4 + tl.arange(0, 4 * BG)[None, :]
        tl.store(
            hidden_ptr + rows * (groups * 4) + columns,
            join_groups(a, b, c, d),
            mask=token_mask[:, None] & (columns < groups * 4),
        )


@triton.jit
def slope(x, grad, keep, DTYPE: tl.constexpr, MASKED: tl.constexpr):
    """The gradient of one tile of pre-activations: ``2 relu(x)`` times that of the hidden features."""
    out = 2 * relu(x.to(DTYPE).to(tl.float32)) * grad
    if MASKED:
        out = tl.where(keep, out, 0.0)
    return out.to(DTYPE)


@triton.jit
def hidden_backward_kernel(
    z_ptr,
    up_ptr,
    grad_ptr,
    down_ptr,
    hidden_ptr,
    grad_hidden_ptr,
    tokens,
    groups,
    rank,
    out_rank,
    SPARSE: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
):
    """Recompute the hidden features and write them beside the gradient of their pre-activations.

    With both, the three remaining products of backward are plain library calls.
    """
    DTYPE: tl.constexpr = z_ptr.dtype.element_ty
    column_blocks = tl.cdiv(groups, BG)
    token_offsets = tl.program_id(0) // column_blocks * BT + tl.arange(0, BT)
    first_group = tl.program_id(0) % column_blocks * BG
    group_offsets = first_group + tl.arange(0, BG)
    token_mask, group_mask = token_offsets < tokens, group_offsets < groups
    a, b, c, d = group_products(
        z_ptr, up_ptr, token_offsets, group_offsets, token_mask, group_mask, rank,
        UPCAST, BT, BG, BK,
    )  # fmt: skip
    grad_a, grad_b, grad_c, grad_d = group_products(
        grad_ptr, down_ptr, token_offsets, group_offsets, token_mask, group_mask, out_rank,
        UPCAST, BT, BG, BK,
    )  # fmt: skip
    h_a, h_b, h_c, h_d = activate(a, b, c, d, DTYPE, False)
    keep_a, keep_b, keep_c, keep_d = keep_24(h_a, h_b, h_c, h_d)
    if SPARSE:
        zero = tl.zeros_like(h_a)
        h_a, h_b = tl.where(keep_a, h_a, zero), tl.where(keep_b, h_b, zero)
        h_c, h_d = tl.where(keep_c, h_c, zero), tl.where(keep_d, h_d, zero)
    columns = first_group * 4 + tl.arange(0, 4 * BG)[None, :]
    offsets = token_offsets.to(tl.int64)[:, None] * (groups * 4) + columns
    mask = token_mask[:, None] & (columns < groups * 4)
    tl.store(hidden_ptr + offsets, join_groups(h_a, h_b, h_c, h_d), mask=mask)
    grad_hidden = join_groups(
        slope(a, grad_a, keep_a, DTYPE, SPARSE and MASKED),
        slope(b, grad_b, keep_b, DTYPE, SPARSE and MASKED),
        slope(c, grad_c, keep_c, DTYPE, SPARSE and MASKED),
        slope(d, grad_d, keep_d, DTYPE, SPARSE and MASKED),
    )
    tl.store(grad_hidden_ptr + offsets, grad_hidden, mask=mask)


def upcast(dtype: torch.dtype) -> bool:
    """The interpreter's bfloat16 product is wrong (Triton 3.9), its float32 product of the same values is right."""
    return interpreted() and dtype == torch.bfloat16


def to_multiple(multiple: int, *matrices: Tensor) -> list[Tensor]:
    """Columns of zeros up to a multiple: whole tiles need no mask, and rows are aligned for wide loads."""
    return [F.pad(m, (0, -m.shape[1] % multiple)) if m.shape[1] % multiple else m for m in matrices]


def fused_width(rank: int) -> int:
    """The tile of ``fused_kernel`` for a rank: a power of two, at least what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(rank))


def fused(z_TR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
    """``S(relu(z upᵀ)**2) down``, or without S; contiguous in, ``(T, O)`` out, ranks to ``largest_fused_rank``."""
    (tokens, rank), (features, out_rank) = z_TR.shape, down_FO.shape
    block_r, block_o = fused_width(rank), fused_width(out_rank)
    tiles = fused_tiles(z_TR.dtype, max(block_r, block_o))
    z_TR, up_FR = to_multiple(block_r, z_TR, up_FR)
    (down_FO,) = to_multiple(block_o, down_FO)
    out_TO = z_TR.new_empty((tokens, block_o))
    fused_kernel[(triton.cdiv(tokens, tiles.tokens),)](
        z_TR,
        up_FR,
        down_FO,
        out_TO,
        tokens,
        features // 4,
        SPARSE=sparse,
        UPCAST=upcast(z_TR.dtype),
        BT=tiles.tokens,
        BG=tiles.groups,
        BR=block_r,
        BO=block_o,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out_TO[:, :out_rank]


def _hidden(z_TR: Tensor, up_FR: Tensor, hidden: Tensor, meta: Tensor, sparse: bool, packed: bool) -> None:
    tokens, groups = z_TR.shape[0], up_FR.shape[0] // 4
    tiles = hidden_tiles(z_TR.dtype)
    z_TR, up_FR = to_multiple(tiles.depth, z_TR, up_FR)
    grid = (triton.cdiv(tokens, tiles.tokens) * triton.cdiv(groups, tiles.groups),)
    hidden_kernel[grid](
        z_TR,
        up_FR,
        hidden,
        meta,
        tokens,
        groups,
        z_TR.shape[1],
        SPARSE=sparse,
        PACKED=packed,
        UPCAST=upcast(z_TR.dtype),
        BT=tiles.tokens,
        BG=tiles.groups,
        BK=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def hidden(z_TR: Tensor, up_FR: Tensor, sparse: bool) -> Tensor:
    """``S(relu(z upᵀ)**2)``, or without S, in one pass: ``(T, F)``; contiguous in."""
    hidden_TF = z_TR.new_empty((z_TR.shape[0], up_FR.shape[0]))
    _hidden(z_TR, up_FR, hidden_TF, hidden_TF, sparse, packed=False)
    return hidden_TF


def forward(z_TR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
    """``S(relu(z upᵀ)**2) down``: by one kernel where the ranks allow it, else by a kernel and a library product."""
    if max(up_FR.shape[1], down_FO.shape[1]) <= largest_fused_rank(z_TR.dtype, shared_memory(z_TR.device)):
        return fused(z_TR, up_FR, down_FO, sparse)
    return hidden(z_TR, up_FR, sparse) @ down_FO


def hidden_packed(z_TR: Tensor, up_FR: Tensor, values: Tensor, meta: Tensor) -> None:
    """``pack_24(relu(z upᵀ)**2)`` in one pass into contiguous ``(T, F/2)`` and ``(T, F/8)`` uint8; F in whole bytes."""
    _hidden(z_TR, up_FR, values, meta, sparse=True, packed=True)


def hidden_backward(
    z_TR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_TO: Tensor, sparse: bool, masked: bool
) -> tuple[Tensor, Tensor]:
    """The hidden features again and the gradient of their pre-activations, both ``(T, F)``; contiguous in."""
    tokens, features = z_TR.shape[0], up_FR.shape[0]
    tiles = backward_tiles(z_TR.dtype)
    z_TR, up_FR, grad_TO, down_FO = to_multiple(tiles.depth, z_TR, up_FR, grad_TO, down_FO)
    groups = features // 4
    hidden_TF, grad_TF = z_TR.new_empty((2, tokens, features)).unbind()
    grid = (triton.cdiv(tokens, tiles.tokens) * triton.cdiv(groups, tiles.groups),)
    hidden_backward_kernel[grid](
        z_TR,
        up_FR,
        grad_TO,
        down_FO,
        hidden_TF,
        grad_TF,
        tokens,
        groups,
        z_TR.shape[1],
        grad_TO.shape[1],
        SPARSE=sparse,
        MASKED=masked,
        UPCAST=upcast(z_TR.dtype),
        BT=tiles.tokens,
        BG=tiles.groups,
        BK=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return hidden_TF, grad_TF
