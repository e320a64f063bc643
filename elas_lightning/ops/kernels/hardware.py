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
from elas_lightning.ops.kernels.products import own_tile, product, row_places, store_columns, to_multiple, upcast
from elas_lightning.ops.kernels.selection import activate, member_major, pack, place
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
def join_words(code):
    """Whole blocks of codes ``(BT, BG)`` to words ``(BT/2, BG/2)``: rows r and r + 8, groups g and g + 4 share one."""
    BT: tl.constexpr = code.shape[0]
    BG: tl.constexpr = code.shape[1]
    shifted = code << bit_offsets(tl.arange(0, BT)[:, None], tl.arange(0, BG)[None, :])
    pairs = tl.reshape(shifted, (BT // 16, 2, 8, BG // 8, 2, 4))
    return tl.reshape(tl.sum(tl.sum(pairs, 4), 1), (BT // 2, BG // 2)).to(tl.int16)


@triton.jit
def unpack_hardware_kernel(
    values_ptr, words_ptr, out_ptr, tokens, groups, all_groups, BT: tl.constexpr, BG: tl.constexpr
):
    """The first tokens and groups of a packed buffer, dense; ``all_groups`` are the groups in whole blocks."""
    column_blocks = tl.cdiv(groups, BG)
    row, column = tl.program_id(0) // column_blocks, tl.program_id(0) % column_blocks
    t, g = row * BT + tl.arange(0, BT), column * BG + tl.arange(0, BG)
    words = tl.load(words_ptr + word_offsets(t[:, None], g[None, :], all_groups)).to(tl.int32)
    code = (words >> bit_offsets(t[:, None], g[None, :])) & 0xF
    values = tl.load(values_ptr + row_places(t, column * (2 * BG) + tl.arange(0, 2 * BG), all_groups * 2))
    store_columns(out_ptr, place(values, code), t, column, tokens, groups * 4)


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
    all_rows,
    all_groups,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
):
    """``S(relu(z upᵀ)**2)``, packed; ``all_rows`` and ``all_groups`` are tokens and groups in whole blocks."""
    DTYPE: tl.constexpr = z_ptr.dtype.element_ty
    row, column = own_tile(all_rows // BT, all_groups // BG)
    t = row * BT + tl.arange(0, BT)
    f = member_major(column * BG, BG)
    x = product(z_ptr, up_ptr, t, f, tokens, groups * 4, rank, UPCAST, BK)
    _, hidden = activate(x, DTYPE)
    # the products of a row that is not finite are NaN where there is no feature, too
    hidden = tl.where((f < groups * 4)[None, :], hidden, tl.zeros_like(hidden))
    values, code = pack(hidden)
    tl.store(values_ptr + row_places(t, column * (2 * BG) + tl.arange(0, 2 * BG), all_groups * 2), values)
    half_rows, half_groups = tl.arange(0, BT // 2)[:, None], tl.arange(0, BG // 2)[None, :]
    word_rows = row * BT + half_rows // 8 * 16 + half_rows % 8
    word_groups = column * BG + half_groups // 4 * 8 + half_groups % 4
    tl.store(words_ptr + word_offsets(word_rows, word_groups, all_groups), join_words(code))


def hidden_hardware(z_TR: Tensor, up_FR: Tensor, packed: Tensor) -> None:
    """Fill ``packed``, of ``packed_shape(T, F)``, with ``S(relu(z upᵀ)**2)``; contiguous 16-bit in, F in whole groups.

    Its rows are those of one chunk: places of metadata are 32-bit numbers.
    """
    tokens, groups = z_TR.shape[0], up_FR.shape[0] // 4
    assert packed.shape == packed_shape(tokens, up_FR.shape[0])
    values, words = split(packed)
    rows, all_groups = values.shape[0], values.shape[1] // 2
    tiles = hidden_tiles(z_TR.dtype)
    # a tile that stood out of the buffer would write into another's metadata, since nothing masks it
    assert rows % tiles.tokens == 0
    assert all_groups % tiles.groups == 0
    z_TR, up_FR = to_multiple(tiles.depth, z_TR, up_FR)
    hidden_hardware_kernel[(rows // tiles.tokens * (all_groups // tiles.groups),)](
        z_TR,
        up_FR,
        values,
        words,
        tokens,
        groups,
        z_TR.shape[1],
        rows,
        all_groups,
        UPCAST=upcast(z_TR.dtype),
        **tiles.launch,
    )
