"""The packed form that cuSPARSELt multiplies with: the specification of ``ops/kernels/hardware.py``.

One contiguous buffer of 16-bit words. First the kept values, row-major, F / 2 a row. Then the metadata: the codes
of ``pack_24``, four a word, in another order. The code of row r and group g (features 4 g to 4 g + 3; G = F / 4
of them) stands in bits 4 s to 4 s + 3 of word w, where

    s = 2 (g div 4 mod 2) + r div 8 mod 2
    w = 16 G (r div 64) + 128 (g div 8) + 32 (r div 16 mod 4) + 4 (r mod 8) + g mod 4

In words: 64 x 32 blocks (rows x features), those of one row of blocks after each other; in a block four strips
of 16 rows; in a strip 64 bits for each row r of its upper half, which hold the block's eight groups of rows r and
r + 8. They are four words of ``pack_24`` (row r and row r + 8 of the block's first 16 features, then of its last),
each a row of a 4 x 4 matrix of codes, and the matrix is stored transposed.

NVIDIA does not document this form and may change it. It was read off what cuSPARSELt 0.8.0 compressed on an H200
(``torch._cslt_compress`` of PyTorch 2.11, matrices of 128 x 128, 256 x 256 and 384 x 640). It is not the form that
PyTorch's own writer makes for compute capability 8.x. So ``ops/cusparselt.py`` trusts it only after it has checked
the device at hand.

Shape suffixes: T rows, F features, K = F / 2 kept values, M = F / 8 bytes of codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Whole blocks, and the multiples at which the library's form has been read.
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
    words = meta.contiguous().view(torch.int16).view(rows // 64, 4, 2, 8, features // 32, 2)
    matrices = words.permute(0, 4, 1, 3, 5, 2).reshape(-1).view(torch.int64)
    packed = torch.cat((values.reshape(-1).view(torch.int16), _transpose(matrices).view(torch.int16)))
    return packed.view(values.dtype).view(packed_shape(rows, features))


def from_hardware(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of ``to_hardware``: ``values (T, K)``, a view, and ``meta (T, M)``."""
    values, words = split(packed)
    rows, features = values.shape[0], 2 * values.shape[1]
    matrices = _transpose(words.view(torch.int64)).view(torch.int16)
    blocks = matrices.view(rows // 64, features // 32, 4, 8, 2, 2)
    meta = blocks.permute(0, 2, 5, 3, 1, 4).reshape(rows, features // 16)
    return values, meta.view(torch.uint8)


def _transpose(matrices: Tensor) -> Tensor:
    """Transpose 4 x 4 matrices of four-bit codes, each in the 64 bits of an integer, the first code lowest."""
    # first inside each 2 x 2 block, then the blocks: what lies above the diagonal changes places with what lies below
    for shift, above in ((12, 0x0000F0F00000F0F0), (24, 0x00000000FF00FF00)):
        changed = (matrices ^ matrices >> shift) & above
        matrices = matrices ^ changed ^ changed << shift
    return matrices
