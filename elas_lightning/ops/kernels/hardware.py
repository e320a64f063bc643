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
from elas_lightning.ops.kernels.products import own_tile, product, row_places, to_multiple, upcast
from elas_lightning.ops.kernels.selection import activate, join_codes, member_major, pack
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
    row, column = own_tile(all_rows // BT, all_groups // BG)
    t = row * BT + tl.arange(0, BT)
    f = member_major(column * BG, BG)
    x = product(z_ptr, up_ptr, t, f, tokens, groups * 4, rank, UPCAST, BK)
    _, hidden = activate(x, DTYPE)
    # the products of a row that is not finite are NaN where there is no feature, too
    hidden = tl.where((f < groups * 4)[None, :], hidden, tl.zeros_like(hidden))
    values, code = pack(hidden)
    tl.store(values_ptr + row_places(t, column * (2 * BG) + tl.arange(0, 2 * BG), all_groups * 2), values)
    words = join_codes(join_codes(code, 4), 8).to(tl.int16)
    place = column * (BG // 4) + tl.arange(0, BG // 4)
    tl.store(words_ptr + word_offsets(t[:, None], place[None, :], all_rows), words)


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
        BT=tiles.tokens,
        BG=tiles.groups,
        BK=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
