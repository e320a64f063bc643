"""Masks that are 2:4 along rows and columns both (Hu et al., arXiv 2404.01847), exactly.

A weight is multiplied by its rows in forward and by its columns in backward; with such a mask both are 2:4 products.
There are 90 patterns of a 4 × 4 block with two entries in each row and column. The best keeps the largest sum of
magnitudes, and 90 sums are one matrix product: the paper's convolution.

Shape suffixes: O output features, I input features, N patterns (90), E entries of a block (16).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor


@cache
def transposable_patterns() -> tuple[tuple[int, ...], ...]:
    """The 90 patterns, each 16 zeros and ones, row after row."""
    rows = [tuple(int(i in pair) for i in range(4)) for pair in combinations(range(4), 2)]
    blocks = product(rows, repeat=4)
    return tuple(sum(block, ()) for block in blocks if all(sum(column) == 2 for column in zip(*block, strict=True)))


def transposable_mask(weight_OI: Tensor) -> Tensor:
    """The mask that keeps the largest sum of magnitudes in every 4 × 4 block; of equal ones, the first pattern.

    Args:
        weight_OI: Rows and columns beyond the last whole block are kept.

    Returns:
        ``(O, I)`` boolean.
    """
    rows, columns = (side // 4 * 4 for side in weight_OI.shape)
    patterns_NE = torch.tensor(transposable_patterns(), dtype=weight_OI.dtype, device=weight_OI.device)
    magnitude = weight_OI.detach()[:rows, :columns].abs()
    blocks = magnitude.reshape(rows // 4, 4, columns // 4, 4).transpose(1, 2)
    best = (blocks.reshape(-1, 16) @ patterns_NE.T).argmax(1)
    kept = patterns_NE.bool()[best].reshape(rows // 4, columns // 4, 4, 4)
    mask = torch.ones_like(weight_OI, dtype=torch.bool)
    mask[:rows, :columns] = kept.transpose(1, 2).reshape(rows, columns)
    return mask
