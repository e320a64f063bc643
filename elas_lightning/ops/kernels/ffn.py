"""The low-rank FFN between two rank-sized tensors, without its hidden features in memory.

It is attention without the softmax: ``z`` stands for the queries, the rows of ``up`` for the keys, those of
``down`` for the values. ``fused_kernel`` never writes the hidden features. Above ``largest_fused_rank`` its tiles
no longer fit, and ``hidden_kernel`` writes them once, already activated and selected, for a
library product. ``ops/storage.py`` calls these functions chunk by chunk and holds their gradients.

A tile of hidden features is one product, with the rows of ``up`` in the order of ``member_major``; its groups are
taken apart for the selection and put together again without a value changing its thread, see ``selection.py``.
Products are accumulated in float32, and the pre-activation is rounded to the dtype before the selection, as in the
plain composition.

Shape suffixes: T tokens, R rank, F hidden features, G = F / 4 groups, O output rank.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.kernels.products import (
    dot,
    own_tile,
    product,
    row_places,
    store_columns,
    to_multiple,
    upcast,
    whole_groups,
)
from elas_lightning.ops.kernels.selection import (
    activate,
    join_codes,
    join_groups,
    join_members,
    member_major,
    pack,
    select,
    split_members,
    zero_dropped,
)
from elas_lightning.ops.kernels.tiles import (
    backward_tiles,
    fused_tiles,
    hidden_tiles,
    largest_fused_rank,
    shared_memory,
)


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
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    r, o = tl.arange(0, BR), tl.arange(0, BO)
    z = tl.load(z_ptr + row_places(t, r, BR), mask=(t < tokens)[:, None], other=0.0)
    out = tl.zeros((BT, BO), tl.float32)
    for first_group in range(0, groups, BG):
        f = member_major(first_group, BG)
        inside = (f < groups * 4)[:, None]
        # places of 64 bits would spill; 32 reach for eight million features of the widest fused rank
        up = tl.load(up_ptr + (f * BR)[:, None] + r[None, :], mask=inside, other=0.0)
        down = tl.load(down_ptr + (f * BO)[:, None] + o[None, :], mask=inside, other=0.0)
        x = dot(z, tl.trans(up), tl.zeros((BT, 4 * BG), tl.float32), UPCAST)
        _, hidden = activate(x, DTYPE)
        out = dot(join_members(*select(hidden, SPARSE)), down, out, UPCAST)
    tl.store(out_ptr + row_places(t, o, BO), out.to(DTYPE), mask=(t < tokens)[:, None])


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
    row, column = own_tile(tl.cdiv(tokens, BT), tl.cdiv(groups, BG))
    t = row * BT + tl.arange(0, BT)
    f = member_major(column * BG, BG)
    x = product(z_ptr, up_ptr, t, f, tokens, groups * 4, rank, UPCAST, BK)
    _, hidden = activate(x, DTYPE)
    if PACKED:
        values, code = pack(hidden)
        store_columns(hidden_ptr, values, t, column, tokens, groups * 2)
        store_columns(meta_ptr, join_codes(code, 4).to(tl.uint8), t, column, tokens, groups // 2)
    else:
        hidden = join_groups(*select(hidden, SPARSE))
        store_columns(hidden_ptr, hidden, t, column, tokens, groups * 4)


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
    row, column = own_tile(tl.cdiv(tokens, BT), tl.cdiv(groups, BG))
    t = row * BT + tl.arange(0, BT)
    f = member_major(column * BG, BG)
    grad = product(grad_ptr, down_ptr, t, f, tokens, groups * 4, out_rank, UPCAST, BK)
    x = product(z_ptr, up_ptr, t, f, tokens, groups * 4, rank, UPCAST, BK)
    positive, hidden = activate(x, DTYPE)
    grad = (2 * positive.to(tl.float32) * grad).to(DTYPE)
    a, b, c, d = split_members(grad)
    if SPARSE and MASKED:
        a, b, c, d = zero_dropped(a, b, c, d, *split_members(hidden))
    store_columns(grad_hidden_ptr, join_groups(a, b, c, d), t, column, tokens, groups * 4)
    hidden = join_groups(*select(hidden, SPARSE))
    store_columns(hidden_ptr, hidden, t, column, tokens, groups * 4)


def fused_width(rank: int) -> int:
    """The tile of ``fused_kernel`` for a rank: a power of two, at least what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(rank))


def fused(z_TR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
    """``S(relu(z upᵀ)**2) down``, or without S; contiguous in, ``(T, O)`` out, ranks to ``largest_fused_rank``.

    F in whole groups.
    """
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
        **tiles.launch,
    )


def hidden(z_TR: Tensor, up_FR: Tensor, sparse: bool) -> Tensor:
    """``S(relu(z upᵀ)**2)``, or without S, in one pass: ``(T, F)``; contiguous in, F in whole groups."""
    hidden_TF = z_TR.new_empty((z_TR.shape[0], up_FR.shape[0]))
    _hidden(z_TR, up_FR, hidden_TF, hidden_TF, sparse, packed=False)
    return hidden_TF


def is_fused(up_FR: Tensor, down_FO: Tensor) -> bool:
    """Whether ``forward`` is one kernel, which writes no hidden features."""
    largest = largest_fused_rank(up_FR.dtype, shared_memory(up_FR.device))
    return max(up_FR.shape[1], down_FO.shape[1]) <= largest


def forward(z_TR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
    """``S(relu(z upᵀ)**2) down``: by one kernel where the ranks allow it, else by a kernel and a library product."""
    up_FR, down_FO = whole_groups(up_FR, down_FO)
    if is_fused(up_FR, down_FO):
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
    up_FR, down_FO = whole_groups(up_FR, down_FO)
    z_TR, up_FR, grad_TO, down_FO = to_multiple(tiles.depth, z_TR, up_FR, grad_TO, down_FO)
    groups = up_FR.shape[0] // 4
    hidden_TF, grad_TF = z_TR.new_empty((2, tokens, 4 * groups)).unbind()
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
        **tiles.launch,
    )
    return hidden_TF[:, :features], grad_TF[:, :features]
