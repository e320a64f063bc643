"""The specification of 2:4 selection, in plain PyTorch: every other backend must agree with it bit for bit.

Shape suffixes: N features along the 2:4 axis, G = N / 4 groups; "..." any leading (or other) dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

# By the dtypes for which sparsity is defined: integers as wide.
INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def magnitude(x: Tensor) -> Tensor:
    """Integers that order as magnitudes do, NaN above infinity: the bit patterns without the sign."""
    integer = INTEGERS[x.dtype]
    return x.view(integer) & torch.iinfo(integer).max


def check_24(x: Tensor, dim: int, multiple: int = 4) -> int:
    """Refuse what has no 2:4 pattern.

    Args:
        x: Tensor to be made 2:4 along ``dim``.
        dim: The axis of the groups, negative counts from the end.
        multiple: What the size of that axis must be divisible by.

    Returns:
        ``dim`` counted from the front.

    Raises:
        ValueError: Unknown axis, size not a multiple, or a dtype that is not floating point.
    """
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"2:4 needs an axis: dim {dim} does not exist in shape {tuple(x.shape)}")
    if x.shape[dim] % multiple:
        raise ValueError(
            f"2:4 works on whole groups: shape {tuple(x.shape)} has size {x.shape[dim]} in dim {dim}, "
            f"it must be a multiple of {multiple}"
        )
    if x.dtype not in INTEGERS:
        raise ValueError(f"2:4 is defined for float16, bfloat16, float32 and float64, not {x.dtype}")
    return dim % x.dim()


def keep_24(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which entries of each group of four are kept: exactly two, the largest magnitudes.

    Equal magnitudes: the lower index wins. NaN ranks above infinity, so that it stays visible.

    Six comparisons of integers (``magnitude``) rank a group of four; on a CPU this is many times faster than ``topk``
    and, unlike it, defines ties.

    Args:
        x: ``(..., N, ...)``, N a multiple of 4, any strides.
        dim: Axis of N, counted from the front.

    Returns:
        For each of the four positions in a group a boolean ``(..., G, ...)``.
    """
    groups = magnitude(x).unflatten(dim, (x.shape[dim] // 4, 4))
    a, b, c, d = groups.unbind(dim + 1)
    # ">=" towards the right is the tie rule: it makes the order total, so exactly two entries survive.
    ab, cd = a >= b, c >= d
    ac, ad, bc, bd = a >= c, a >= d, b >= c, b >= d
    left_pair = ac & ad & bc & bd  # a and b both beat c and d
    left_some = ac | ad | bc | bd  # else c and d both beat a and b
    not_left_pair, left_none = ~left_pair, ~left_some
    return (
        (ab | left_pair) & left_some,
        (~ab | left_pair) & left_some,
        (cd | left_none) & not_left_pair,
        (~cd | left_none) & not_left_pair,
    )


def keep_mask_24(x: Tensor, dim: int) -> Tensor:
    """``keep_24`` as one boolean mask of the shape of ``x``."""
    return torch.stack(keep_24(x, dim), dim + 1).flatten(dim, dim + 1)


def zero_dropped(x: Tensor, keep: Tensor) -> Tensor:
    """``x`` where ``keep``, positive zero elsewhere, bit for bit.

    The multiplication is of integers: a float product would turn dropped infinities and NaN into NaN, and
    ``where`` on a random mask costs a CPU some thirty times as much (it branches on each entry).
    """
    return (x.view(INTEGERS[x.dtype]) * keep).view(x.dtype)
