"""The packed form that cuSPARSELt multiplies with: the specification of ``ops/kernels/hardware.py``.

One contiguous buffer of 16-bit words. First the kept values, row-major, F / 2 a row. Then the metadata: a word
holds the codes of 16 features of one row, which are two bytes of ``pack_24``, and the words are interleaved:

- 128 x 64 blocks (rows x features), those of one column of blocks after each other, then the next column;
- in a block eight 32 x 32 tiles, the four of the left half from top to bottom, then the right half;
- in a tile, row r (0 to 31) and half c (0 or 1) stand at word ``8 (r mod 8) + 4 (r div 16) + 2 c + (r div 8) mod 2``.

NVIDIA does not document this form. It is what PyTorch writes for cuSPARSELt in
``aten/src/ATen/native/sparse/cuda/SparseSemiStructuredTile.cu`` and ``SparseSemiStructuredPack.h``; the order
inside a tile is also CUTLASS's. So ``ops/cusparselt.py`` trusts it only after it has checked the device at hand.

Shape suffixes: T rows, F features, K = F / 2 kept values, M = F / 8 bytes of codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

# PyTorch's own writer refuses other multiples; blocks are 128 x 64.
ROWS = 128
FEATURES = 128


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def packed_shape(rows: int, features: int) -> tuple[int, int]:
    """Shape of the buffer for ``(rows, features)``, rounded up to whole blocks, in 16-bit words.

    cuSPARSELt's product reads the number of rows off the first dimension; the second, 9 / 16 of the features,
    has no meaning of its own.
    """
    return round_up(rows, ROWS), round_up(features, FEATURES) * 9 // 16


def split(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of a buffer as views.

    Args:
        packed: ``packed_shape``, contiguous, float16 or bfloat16.

    Returns:
        The values ``(T, K)`` and the metadata's words, flat int16.
    """
    rows, features = packed.shape[0], packed.shape[1] * 16 // 9
    values, words = packed.view(-1).split((rows * features // 2, rows * features // 16))
    return values.view(rows, features // 2), words.view(torch.int16)


def to_hardware(values: Tensor, meta: Tensor) -> Tensor:
    """Arrange what ``pack_24`` returns for the hardware.

    Args:
        values: ``(T, K)`` float16 or bfloat16, T a multiple of 128, F of 128.
        meta: ``(T, M)`` uint8.

    Returns:
        The buffer, of ``packed_shape(T, F)``.

    Raises:
        ValueError: Not a matrix of that dtype in whole blocks.
    """
    rows, features = values.shape[0], 2 * values.shape[-1]
    whole = values.dim() == 2 and rows % ROWS == 0 and features % FEATURES == 0
    if not whole or values.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the hardware's form needs 16-bit values (t, d_ff/2) with t a multiple of {ROWS} and d_ff of "
            f"{FEATURES}, not {values.dtype} {tuple(values.shape)}"
        )
    words = meta.contiguous().view(torch.int16)
    tiles = words.view(rows // 128, 4, 2, 2, 8, features // 64, 2, 2)
    interleaved = tiles.permute(5, 0, 6, 1, 4, 2, 7, 3).reshape(-1)
    packed = torch.cat((values.reshape(-1).view(torch.int16), interleaved))
    return packed.view(values.dtype).view(packed_shape(rows, features))


def from_hardware(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of ``to_hardware``: ``values (T, K)``, a view, and ``meta (T, M)``."""
    values, words = split(packed)
    rows, features = values.shape[0], 2 * values.shape[1]
    tiles = words.view(features // 64, rows // 128, 2, 4, 8, 2, 2, 2)
    meta = tiles.permute(1, 3, 5, 7, 4, 0, 2, 6).reshape(rows, features // 16)
    return values, meta.view(torch.uint8)
