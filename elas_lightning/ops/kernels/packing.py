"""``pack_24`` and ``unpack_24`` in one pass, bit for bit as ``ops/packing.py`` lays them out.

Shape suffixes: N features, K = N / 2 kept values, M = N / 8 bytes; "..." leading dimensions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.kernels.selection import join_codes, join_pairs, kept_two, keys, place, split_groups

BLOCK = 4096
WARPS = 4


@triton.jit
def named(a, b, c, d, code):
    """The two of four that a code names, in turns: exactly two are kept, so the first is a, b or c."""
    first_index, second_index = code & 3, code >> 2
    first = tl.where(first_index == 0, a, tl.where(first_index == 1, b, c))
    second = tl.where(second_index == 3, d, tl.where(second_index == 2, c, b))
    return join_pairs(first, second)


@triton.jit
def pack_kernel(x_ptr, values_ptr, meta_ptr, entries, BLOCK: tl.constexpr):
    """Values and codes of a flat tensor."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    x_offsets = start + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + x_offsets, mask=x_offsets < entries, other=0.0)
    a, b, c, d = split_groups(x)
    _, _, code = kept_two(*keys(a, b, c, d))
    values, meta = named(a, b, c, d, code), join_codes(code, 4).to(tl.uint8)
    values_offsets = start // 2 + tl.arange(0, BLOCK // 2)
    meta_offsets = start // 8 + tl.arange(0, BLOCK // 8)
    tl.store(values_ptr + values_offsets, values, mask=values_offsets < entries // 2)
    tl.store(meta_ptr + meta_offsets, meta, mask=meta_offsets < entries // 8)


@triton.jit
def unpack_kernel(values_ptr, meta_ptr, out_ptr, entries, BLOCK: tl.constexpr):
    """The dense tensor of flat values and codes."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    values_offsets = start // 2 + tl.arange(0, BLOCK // 2)
    meta_offsets = start // 8 + tl.arange(0, BLOCK // 8)
    values = tl.load(values_ptr + values_offsets, mask=values_offsets < entries // 2, other=0.0)
    meta = tl.load(meta_ptr + meta_offsets, mask=meta_offsets < entries // 8, other=0).to(tl.int32)
    out = place(values, join_pairs(meta & 0xF, meta >> 4))
    out_offsets = start + tl.arange(0, BLOCK)
    tl.store(out_ptr + out_offsets, out, mask=out_offsets < entries)


@torch.library.custom_op("elas::pack_24", mutates_args=())
def pack(x: Tensor) -> tuple[Tensor, Tensor]:
    """What ``S(x)`` keeps.

    Args:
        x: ``(..., N)`` float16, bfloat16 or float32, N a multiple of 8, any strides.

    Returns:
        ``values (..., K)`` and ``meta (..., M)`` uint8, contiguous.
    """
    x = x.contiguous()
    values = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    meta = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    if x.numel():
        grid = (triton.cdiv(x.numel(), BLOCK),)
        pack_kernel[grid](x, values, meta, x.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return values, meta


@torch.library.custom_op("elas::unpack_24", mutates_args=())
def unpack(values: Tensor, meta: Tensor) -> Tensor:
    """The dense ``(..., N)`` of ``values (..., K)`` and ``meta (..., M)``."""
    values, meta = values.contiguous(), meta.contiguous()
    out = values.new_empty((*values.shape[:-1], 2 * values.shape[-1]))
    if out.numel():
        grid = (triton.cdiv(out.numel(), BLOCK),)
        unpack_kernel[grid](values, meta, out, out.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return out


@triton.jit
def gather_kernel(x_ptr, meta_ptr, values_ptr, entries, BLOCK: tl.constexpr):
    """The entries of a flat tensor at the places that codes name: the gradient of ``unpack_kernel``."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    x_offsets = start + tl.arange(0, BLOCK)
    meta_offsets = start // 8 + tl.arange(0, BLOCK // 8)
    x = tl.load(x_ptr + x_offsets, mask=x_offsets < entries, other=0.0)
    meta = tl.load(meta_ptr + meta_offsets, mask=meta_offsets < entries // 8, other=0).to(tl.int32)
    a, b, c, d = split_groups(x)
    code = join_pairs(meta & 0xF, meta >> 4)
    values_offsets = start // 2 + tl.arange(0, BLOCK // 2)
    values = named(a, b, c, d, code)
    tl.store(values_ptr + values_offsets, values, mask=values_offsets < entries // 2)


@torch.library.custom_op("elas::gather_24", mutates_args=())
def gather(x: Tensor, meta: Tensor) -> Tensor:
    """Of ``x (..., N)`` the two entries a group that ``meta (..., M)`` names, ``(..., K)``."""
    x, meta = x.contiguous(), meta.contiguous()
    values = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    if x.numel():
        grid = (triton.cdiv(x.numel(), BLOCK),)
        gather_kernel[grid](x, meta, values, x.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return values


@pack.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    meta = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2)), meta


@unpack.register_fake
def _(values: Tensor, meta: Tensor) -> Tensor:
    return values.new_empty((*values.shape[:-1], 2 * values.shape[-1]))


@gather.register_fake
def _(x: Tensor, meta: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _save_own_meta(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _save_given_meta(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _pack_backward(ctx, grad_values, grad_meta):
    return unpack(grad_values, ctx.saved_tensors[0])


def _unpack_backward(ctx, grad):
    return gather(grad, ctx.saved_tensors[0]), None


def _gather_backward(ctx, grad):
    return unpack(grad, ctx.saved_tensors[0]), None


pack.register_autograd(_pack_backward, setup_context=_save_own_meta)
unpack.register_autograd(_unpack_backward, setup_context=_save_given_meta)
gather.register_autograd(_gather_backward, setup_context=_save_given_meta)
