"""What the matrix kernels share: products of tiles, and the order in which programs go through them.

Kernels see contiguous matrices whose widths are whole tiles (``to_multiple``), and any number of rows.

Shape suffixes in comments: T tokens, F features, K the inner dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.kernels.tiles import interpreted


@triton.jit
def dot(a, b, accumulator, UPCAST: tl.constexpr):
    """``accumulator + a @ b``, float32 in full precision."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def row_places(rows, columns, width):
    """Where the entries of a tile lie in a matrix: ``(rows, columns)``; 64 bits, as matrices may be large."""
    return rows.to(tl.int64)[:, None] * width + columns[None, :]


@triton.jit
def store_columns(matrix_ptr, tile, t, column, tokens, width):
    """Write a tile, the ``column``-th at rows ``t`` of a ``(tokens, width)`` matrix, as far as it lies inside."""
    columns = column * tile.shape[1] + tl.arange(0, tile.shape[1])
    mask = (t < tokens)[:, None] & (columns < width)[None, :]
    tl.store(matrix_ptr + row_places(t, columns, width), tile, mask=mask)


@triton.jit
def product(x_ptr, w_ptr, t, f, tokens, features, width, UPCAST: tl.constexpr, BK: tl.constexpr):
    """``x wᵀ`` at rows ``t`` of x, ``(T, K)``, and ``f`` of w, ``(F, K)``: a float32 tile."""
    k = tl.arange(0, BK)
    x_places, w_places = x_ptr + row_places(t, k, width), w_ptr + row_places(f, k, width)
    x_mask, w_mask = (t < tokens)[:, None], (f < features)[:, None]
    out = tl.zeros((t.shape[0], f.shape[0]), tl.float32)
    for start in range(0, width, BK):
        x = tl.load(x_places + start, mask=x_mask, other=0.0)
        w = tl.load(w_places + start, mask=w_mask, other=0.0)
        out = dot(x, tl.trans(w), out, UPCAST)
    return out


@triton.jit
def own_tile(rows, columns):
    """Row and column of this program's tile among ``rows`` x ``columns``.

    Programs that run at the same time share few rows and few columns, so that what one of them loads the others
    find in the L2 cache: eight rows go through the columns together.
    """
    TOGETHER: tl.constexpr = 8
    first = tl.program_id(0) // (TOGETHER * columns) * TOGETHER
    place = tl.program_id(0) % (TOGETHER * columns)
    height = min(rows - first, TOGETHER)
    return first + place % height, place // height


def upcast(dtype: torch.dtype) -> bool:
    """The interpreter's bfloat16 product is wrong (Triton 3.9), its float32 product of the same values is right."""
    return interpreted() and dtype == torch.bfloat16


def to_multiple(multiple: int, *matrices: Tensor) -> list[Tensor]:
    """Columns of zeros up to a multiple: whole tiles need no mask, and rows are aligned for wide loads."""
    return [F.pad(m, (0, -m.shape[1] % multiple)) if m.shape[1] % multiple else m for m in matrices]


def whole_groups(*matrices: Tensor) -> list[Tensor]:
    """Rows of zeros up to whole groups of four features, which a dense FFN need not have; such features are zero."""
    return [F.pad(m, (0, 0, 0, -m.shape[0] % 4)) if m.shape[0] % 4 else m for m in matrices]
