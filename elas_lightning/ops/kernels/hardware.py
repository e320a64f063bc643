"""The hidden features of the FFN, straight from the product that makes them into cuSPARSELt's packed form, and back.

``ops/hardware_layout.py`` is the specification. Every program writes whole 64 x 32 blocks of metadata, and the
rows and features that fill up the last blocks are written as zeros, so that nothing needs to be cleared before.

Shape suffixes: T tokens, R rank, F hidden features.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.hardware_layout import packed_shape, split
from elas_lightning.ops.kernels.ffn import activate, group_products, to_multiple, upcast
from elas_lightning.ops.kernels.selection import choose, place
from elas_lightning.ops.kernels.tiles import hidden_tiles

# What a program of ``unpack_hardware_kernel`` writes; whole blocks hold a whole number of both.
UNPACK_TOKENS = 32
UNPACK_GROUPS = 32
UNPACK_WARPS = 4


@triton.jit
def word_offsets(rows, groups, all_groups):
    """The metadata's word in which the code of a row and a group stands."""
    block = rows // 64 * (all_groups * 16) + groups // 8 * 128
    return block + rows // 16 % 4 * 32 + rows % 8 * 4 + groups % 4


@triton.jit
def bit_offsets(rows, groups):
    """Where in that word the four bits of the code begin."""
    return rows // 8 % 2 * 4 + groups // 4 % 2 * 8


@triton.jit
def join_words(code, BT: tl.constexpr, BG: tl.constexpr):
    """Whole blocks of codes ``(BT, BG)`` to words ``(BT/2, BG/2)``: rows r and r + 8, groups g and g + 4 share one."""
    shifted = code << bit_offsets(tl.arange(0, BT)[:, None], tl.arange(0, BG)[None, :])
    pairs = tl.reshape(shifted, (BT // 16, 2, 8, BG // 8, 2, 4))
    return tl.reshape(tl.sum(tl.sum(pairs, 4), 1), (BT // 2, BG // 2)).to(tl.int16)


@triton.jit
def unpack_hardware_kernel(
    values_ptr, words_ptr, out_ptr, tokens, groups, all_groups, BT: tl.constexpr, BG: tl.constexpr
):
    """The first tokens and groups of a packed buffer, dense; ``all_groups`` are the groups in whole blocks."""
    column_blocks = tl.cdiv(groups, BG)
    rows = (tl.program_id(0) // column_blocks * BT + tl.arange(0, BT))[:, None]
    first_group = tl.program_id(0) % column_blocks * BG
    columns = first_group + tl.arange(0, BG)[None, :]
    word = tl.load(words_ptr + word_offsets(rows, columns, all_groups)).to(tl.int32)
    code = (word >> bit_offsets(rows, columns)) & 0xF
    long_rows = rows.to(tl.int64)
    columns = first_group * 2 + tl.arange(0, 2 * BG)[None, :]
    values = tl.load(values_ptr + long_rows * (all_groups * 2) + columns)
    columns = first_group * 4 + tl.arange(0, 4 * BG)[None, :]
    mask = (rows < tokens) & (columns < groups * 4)
    tl.store(out_ptr + long_rows * (groups * 4) + columns, place(values, code), mask=mask)


def unpack_hardware(packed: Tensor, tokens: int, features: int) -> Tensor:
    """The dense ``(T, F)`` at the beginning of ``packed``, of ``packed_shape(T, F)``; F in whole groups."""
    assert packed.shape == packed_shape(tokens, features)
    values, words = split(packed)
    out_TF = packed.new_empty((tokens, features))
    groups = features // 4
    grid = (triton.cdiv(tokens, UNPACK_TOKENS) * triton.cdiv(groups, UNPACK_GROUPS),)
    unpack_hardware_kernel[grid](
        values,
        words,
        out_TF,
        tokens,
        groups,
        values.shape[1] // 2,
        BT=UNPACK_TOKENS,
        BG=UNPACK_GROUPS,
        num_warps=UNPACK_WARPS,
    )
    return out_TF


@triton.jit
def hidden_hardware_kernel(
    z_ptr,
    up_ptr,
    values_ptr,
    words_ptr,
    tokens,
    groups,
    rank,
    all_groups,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
):
    """``S(relu(z upᵀ)**2)``, packed; ``all_groups`` are the groups in whole blocks."""
    DTYPE: tl.constexpr = z_ptr.dtype.element_ty
    column_blocks = all_groups // BG
    token_offsets = tl.program_id(0) // column_blocks * BT + tl.arange(0, BT)
    first_group = tl.program_id(0) % column_blocks * BG
    group_offsets = first_group + tl.arange(0, BG)
    token_mask, group_mask = token_offsets < tokens, group_offsets < groups
    a, b, c, d = group_products(
        z_ptr, up_ptr, token_offsets, group_offsets, token_mask, group_mask, rank,
        UPCAST, BT, BG, BK,
    )  # fmt: skip
    a, b, c, d = activate(a, b, c, d, DTYPE, False)
    # the products of a row that is not finite are NaN where there is no feature, too
    zero = tl.zeros_like(a)
    a, b = tl.where(group_mask[None, :], a, zero), tl.where(group_mask[None, :], b, zero)
    c, d = tl.where(group_mask[None, :], c, zero), tl.where(group_mask[None, :], d, zero)
    values, code = choose(a, b, c, d)
    rows = token_offsets[:, None]
    columns = first_group * 2 + tl.arange(0, 2 * BG)[None, :]
    tl.store(values_ptr + rows.to(tl.int64) * (all_groups * 2) + columns, values)
    half_rows, half_groups = tl.arange(0, BT // 2)[:, None], tl.arange(0, BG // 2)[None, :]
    word_rows = tl.program_id(0) // column_blocks * BT + half_rows // 8 * 16 + half_rows % 8
    word_groups = first_group + half_groups // 4 * 8 + half_groups % 4
    tl.store(words_ptr + word_offsets(word_rows, word_groups, all_groups), join_words(code, BT, BG))


def hidden_hardware(z_TR: Tensor, up_FR: Tensor, packed: Tensor) -> None:
    """Fill ``packed``, of ``packed_shape(T, F)``, with ``S(relu(z upᵀ)**2)``; contiguous 16-bit in, F in whole groups.

    Its rows are those of one chunk: places of metadata are 32-bit numbers.
    """
    tokens, groups = z_TR.shape[0], up_FR.shape[0] // 4
    assert packed.shape == packed_shape(tokens, up_FR.shape[0])
    values, words = split(packed)
    rows, all_groups = values.shape[0], values.shape[1] // 2
    tiles = hidden_tiles(z_TR.dtype)
    z_TR, up_FR = to_multiple(tiles.depth, z_TR, up_FR)
    hidden_hardware_kernel[(rows // tiles.tokens * (all_groups // tiles.groups),)](
        z_TR,
        up_FR,
        values,
        words,
        tokens,
        groups,
        z_TR.shape[1],
        all_groups,
        UPCAST=upcast(z_TR.dtype),
        BT=tiles.tokens,
        BG=tiles.groups,
        BK=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
