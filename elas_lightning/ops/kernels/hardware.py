"""The hidden features of the FFN, straight from the product that makes them into cuSPARSELt's packed form.

``ops/hardware_layout.py`` is the specification. Every program writes whole 128 x 64 blocks of metadata, and the
rows and features that fill up the last blocks are written as zeros, so that nothing needs to be cleared before.

Shape suffixes: T tokens, R rank, F hidden features.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.hardware_layout import packed_shape, split
from elas_lightning.ops.kernels.ffn import activate, group_products, to_multiple, upcast
from elas_lightning.ops.kernels.selection import pack_groups
from elas_lightning.ops.kernels.tiles import hidden_tiles


@triton.jit
def word_offsets(rows, words, all_rows):
    """Where the metadata's word ``words`` of row ``rows`` stands; ``words`` counts 16 features each."""
    block = (words // 4) * (all_rows * 4) + (rows // 128) * 512
    tile = (words // 2 % 2) * 256 + (rows % 128 // 32) * 64
    return block + tile + (rows % 8) * 8 + (rows % 32 // 16) * 4 + (words % 2) * 2 + rows // 8 % 2


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
    values, meta = pack_groups(a, b, c, d)
    rows = token_offsets[:, None]
    columns = first_group * 2 + tl.arange(0, 2 * BG)[None, :]
    tl.store(values_ptr + rows.to(tl.int64) * (all_groups * 2) + columns, values)
    low, high = tl.split(tl.reshape(meta, (BT, BG // 4, 2)))
    word = low.to(tl.int16) | (high.to(tl.int16) << 8)
    words = first_group // 4 + tl.arange(0, BG // 4)[None, :]
    tl.store(words_ptr + word_offsets(rows, words, all_rows), word)


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
        rows,
        all_groups,
        UPCAST=upcast(z_TR.dtype),
        BT=tiles.tokens,
        BG=tiles.groups,
        BK=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
