"""What the kernels share: 2:4 selection between four tiles, and the ways four tiles lie in one.

A tile holds one member of each group of four, so that choosing two of four happens between tiles, element by
element, and no value changes its thread.

Shape suffixes in comments: g groups of four features; "..." any leading dimensions.
"""

import triton
import triton.language as tl


@triton.jit
def relu(x):
    """ReLU in float32 that lets NaN through, as torch's does."""
    return tl.maximum(x.to(tl.float32), 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate(x, DTYPE: tl.constexpr):
    """``relu(x)`` and ``relu(x)**2``, each rounded to a dtype as the plain composition rounds them.

    ReLU and rounding commute, and in this order compilers convert and square two numbers at a time.
    """
    positive = relu(x).to(DTYPE)
    wide = positive.to(tl.float32)
    return positive, (wide * wide).to(DTYPE)


@triton.jit
def key(x, PLACE: tl.constexpr):
    """The rank of member ``PLACE`` in its group as one integer of twice the width, different from the others'.

    Above stands the order of ``ops/reference.py``: the bits without their sign, so that NaN lies above infinity.
    Below stands the place from the right, so that of equal magnitudes the left is larger.
    """
    if x.dtype.primitive_bitwidth == 16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16) & 0x7FFFFFFF | (3 - PLACE)
    else:
        return (x.to(tl.int32, bitcast=True).to(tl.int64) << 32) & 0x7FFFFFFFFFFFFFFF | (3 - PLACE)


@triton.jit
def keys(a, b, c, d):
    """The keys of four tiles."""
    return key(a, 0), key(b, 1), key(c, 2), key(d, 3)


@triton.jit
def value(of, DTYPE: tl.constexpr):
    """The number that a key was made of, without its sign: squares have none."""
    if DTYPE.primitive_bitwidth == 16:
        return (of >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    else:
        return (of >> 32).to(tl.int32).to(DTYPE, bitcast=True)


@triton.jit
def two_largest(a, b, c, d):
    """Of four keys the largest and the second: minima and maxima alone, which are one instruction each."""
    ab, cd = tl.maximum(a, b), tl.maximum(c, d)
    losers = tl.maximum(tl.minimum(a, b), tl.minimum(c, d))
    return tl.maximum(ab, cd), tl.maximum(tl.minimum(ab, cd), losers)


@triton.jit
def keep_24(a, b, c, d):
    """Which of four are kept: the two of largest magnitude, the lower index on ties; four boolean tiles."""
    a, b, c, d = keys(a, b, c, d)
    _, second = two_largest(a, b, c, d)
    return a >= second, b >= second, c >= second, d >= second


@triton.jit
def zero_dropped(a, b, c, d, of_a, of_b, of_c, of_d):
    """Four tiles, zero where 2:4 of four others drops the member."""
    keep_a, keep_b, keep_c, keep_d = keep_24(of_a, of_b, of_c, of_d)
    zero = tl.zeros_like(a)
    a, b = tl.where(keep_a, a, zero), tl.where(keep_b, b, zero)
    return a, b, tl.where(keep_c, c, zero), tl.where(keep_d, d, zero)


@triton.jit
def kept_two(a, b, c, d):
    """Of four keys the two that are kept, from left to right, and the code that ``ops/packing.py`` gives them."""
    largest, second = two_largest(a, b, c, d)
    ordered = (largest & 3) > (second & 3)
    left, right = tl.where(ordered, largest, second), tl.where(ordered, second, largest)
    # both places, which keys count from the right, turned round
    code = ((left & 3) | ((right & 3) << 2)).to(tl.int32) ^ 15
    return left, right, code


@triton.jit
def join_codes(code, BITS: tl.constexpr):
    """Neighbours in one number, the left below: ``(..., 2g)`` of ``BITS`` bits to ``(..., g)`` of twice as many."""
    low, high = tl.split(tl.reshape(code, code.shape[:-1] + [code.shape[-1] // 2, 2]))
    return low | (high << BITS)


@triton.jit
def join_pairs(left, right):
    """Two tiles ``(..., g)`` in turns: ``(..., 2g)``."""
    return tl.reshape(tl.join(left, right), left.shape[:-1] + [left.shape[-1] * 2])


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
def place(values, code):
    """Values ``(..., 2g)`` and the codes of ``ops/packing.py``, ``(..., g)``, to ``(..., 4g)``, zero elsewhere."""
    first, second = tl.split(tl.reshape(values, code.shape + [2]))
    first_index, second_index = code & 3, code >> 2
    zero = tl.zeros_like(first)
    return join_groups(
        tl.where(first_index == 0, first, zero),
        tl.where(first_index == 1, first, tl.where(second_index == 1, second, zero)),
        tl.where(first_index == 2, first, tl.where(second_index == 2, second, zero)),
        tl.where(second_index == 3, second, zero),
    )


@triton.jit
def member_major(first_group, GROUPS: tl.constexpr):
    """The features of ``GROUPS`` groups as a matrix tile holds them: all first members, then all second, and so on.

    What a matrix instruction leaves in one thread are columns that lie multiples of 8 apart. In this order the four
    members of a group are such columns, and taking them apart is a matter of names.
    """
    n = tl.arange(0, 4 * GROUPS)
    return 4 * (first_group + n % GROUPS) + n // GROUPS


@triton.jit
def split_members(x):
    """``(t, 4g)`` in the order of ``member_major`` into four members ``(t, g)``."""
    x = tl.permute(tl.reshape(x, (x.shape[0], 2, 2, x.shape[1] // 4)), (0, 3, 2, 1))
    left, right = tl.split(x)
    a, b = tl.split(left)
    c, d = tl.split(right)
    return a, b, c, d


@triton.jit
def join_members(a, b, c, d):
    """The inverse of ``split_members``."""
    joined = tl.permute(tl.join(tl.join(a, b), tl.join(c, d)), (0, 3, 2, 1))
    return tl.reshape(joined, (a.shape[0], a.shape[1] * 4))


@triton.jit
def select(hidden, SPARSE: tl.constexpr):
    """The four members of hidden features ``(t, 4g)``, zero where 2:4 drops; none is negative."""
    DTYPE: tl.constexpr = hidden.dtype
    a, b, c, d = split_members(hidden)
    if SPARSE:
        a, b, c, d = keys(a, b, c, d)
        _, second = two_largest(a, b, c, d)
        a, b = value(tl.where(a >= second, a, 0), DTYPE), value(tl.where(b >= second, b, 0), DTYPE)
        c, d = value(tl.where(c >= second, c, 0), DTYPE), value(tl.where(d >= second, d, 0), DTYPE)
    return a, b, c, d


@triton.jit
def pack(hidden):
    """What 2:4 keeps of hidden features ``(t, 4g)``, none of them negative: values ``(t, 2g)``, codes ``(t, g)``."""
    DTYPE: tl.constexpr = hidden.dtype
    a, b, c, d = split_members(hidden)
    left, right, code = kept_two(*keys(a, b, c, d))
    return join_pairs(value(left, DTYPE), value(right, DTYPE)), code
