"""What the kernels share: 2:4 selection between four tiles, and the way four tiles lie in memory.

A tile holds one member of each group of four, so that choosing two of four is a comparison between tiles,
element by element, and no value changes its thread.
"""

import triton
import triton.language as tl


@triton.jit
def magnitude(x):
    """The order of ``ops/reference.py``: bit patterns without their sign, as integers; NaN above infinity."""
    if x.dtype.primitive_bitwidth == 16:
        return x.to(tl.int16, bitcast=True) & 0x7FFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def keep_24(a, b, c, d):
    """Which of four are kept: the two of largest magnitude, the lower index on ties; four boolean tiles."""
    a, b, c, d = magnitude(a), magnitude(b), magnitude(c), magnitude(d)
    ab, cd = a >= b, c >= d
    ac, ad, bc, bd = a >= c, a >= d, b >= c, b >= d
    left_pair = ac & ad & bc & bd
    left_some = ac | ad | bc | bd
    keep_a = (ab | left_pair) & left_some
    keep_b = (~ab | left_pair) & left_some
    keep_c = (cd | ~left_some) & ~left_pair
    keep_d = (~cd | ~left_some) & ~left_pair
    return keep_a, keep_b, keep_c, keep_d


@triton.jit
def relu(x):
    """ReLU that lets NaN through, as torch's does."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def relu2(x):
    """Squared ReLU in the dtype of ``x``: rounded once, as torch rounds it."""
    positive = relu(x.to(tl.float32))
    return (positive * positive).to(x.dtype)


@triton.jit
def split_groups(x):
    """``(..., 4g)`` into the four members of its groups, ``(..., g)`` each."""
    even, odd = tl.split(tl.reshape(x, x.shape[:-1] + [x.shape[-1] // 4, 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def join_groups(a, b, c, d):
    """The inverse of ``split_groups``."""
    joined = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(joined, a.shape[:-1] + [a.shape[-1] * 4])


@triton.jit
def choose(a, b, c, d):
    """What 2:4 keeps of ``(..., g)`` four times: values ``(..., 2g)`` and codes of ``ops/packing.py``, ``(..., g)``."""
    keep_a, keep_b, keep_c, keep_d = keep_24(a, b, c, d)
    # exactly two are kept: the first is a, b or c, the second is d, c or b
    first = tl.where(keep_a, a, tl.where(keep_b, b, c))
    second = tl.where(keep_d, d, tl.where(keep_c, c, b))
    first_index = tl.where(keep_a, 0, tl.where(keep_b, 1, 2))
    second_index = tl.where(keep_d, 3, tl.where(keep_c, 2, 1))
    values = tl.reshape(tl.join(first, second), a.shape[:-1] + [a.shape[-1] * 2])
    return values, first_index | (second_index << 2)


@triton.jit
def pack_groups(a, b, c, d):
    """The layout of ``ops/packing.py``: ``(..., g)`` four times to values ``(..., 2g)`` and bytes ``(..., g/2)``."""
    values, code = choose(a, b, c, d)
    low, high = tl.split(tl.reshape(code, a.shape[:-1] + [a.shape[-1] // 2, 2]))
    return values, (low | (high << 4)).to(tl.uint8)


@triton.jit
def place(values, code):
    """The inverse of ``choose``: values ``(..., 2g)`` and codes ``(..., g)`` to ``(..., 4g)``, zero elsewhere."""
    first, second = tl.split(tl.reshape(values, code.shape + [2]))
    first_index, second_index = code & 3, code >> 2
    zero = tl.zeros_like(first)
    return join_groups(
        tl.where(first_index == 0, first, zero),
        tl.where(first_index == 1, first, tl.where(second_index == 1, second, zero)),
        tl.where(first_index == 2, first, tl.where(second_index == 2, second, zero)),
        tl.where(second_index == 3, second, zero),
    )
