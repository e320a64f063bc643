"""2:4 selection of a tensor in one pass: read once, written once.

Shape suffixes: N features along the 2:4 axis, E entries of the whole tensor; "..." leading dimensions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from elas_lightning.ops.kernels.selection import activate, join_groups, split_groups, zero_dropped

# Entries a program; ahead-of-time compiled in the tests, no configuration is chosen at run time.
BLOCK = 4096
WARPS = 4


@triton.jit
def sparsify_kernel(x_ptr, out_ptr, entries, RELU2: tl.constexpr, BLOCK: tl.constexpr):
    """``S(x)`` or ``S(relu(x)**2)`` of a flat tensor."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < entries, other=0.0)
    if RELU2:
        _, x = activate(x, x.dtype)
    a, b, c, d = split_groups(x)
    tl.store(out_ptr + offsets, join_groups(*zero_dropped(a, b, c, d, a, b, c, d)), mask=offsets < entries)


@triton.jit
def sparsify_backward_kernel(
    x_ptr, grad_ptr, out_ptr, entries, RELU2: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr
):
    """The gradient before the step: times ``2 relu(x)`` (ReLU²), and zero where dropped (masked)."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < entries, other=0.0)
    grad = tl.load(grad_ptr + offsets, mask=offsets < entries, other=0.0)
    positive, hidden = activate(x, x.dtype)
    if MASKED:
        a, b, c, d = split_groups(grad)
        grad = join_groups(*zero_dropped(a, b, c, d, *split_groups(hidden if RELU2 else x)))
    if RELU2:
        slope = (2 * positive.to(tl.float32)).to(x.dtype)
        grad = (slope.to(tl.float32) * grad.to(tl.float32)).to(x.dtype)
    tl.store(out_ptr + offsets, grad, mask=offsets < entries)


@torch.library.custom_op("elas::sparsify_24", mutates_args=())
def sparsify(x: Tensor, relu2: bool, masked: bool) -> Tensor:
    """``S(x)``, or ``S(relu(x)**2)``, along the last axis.

    Args:
        x: ``(..., N)`` float16, bfloat16 or float32, N a multiple of 4, any strides.
        relu2: Whether squared ReLU comes first.
        masked: Whether backward passes through what forward kept only, else it is straight-through.

    Returns:
        ``(..., N)``, contiguous.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), BLOCK),)
        sparsify_kernel[grid](x, out, x.numel(), RELU2=relu2, BLOCK=BLOCK, num_warps=WARPS)
    return out


@torch.library.custom_op("elas::sparsify_24_backward", mutates_args=())
def sparsify_backward(x: Tensor, grad: Tensor, relu2: bool, masked: bool) -> Tensor:
    """The gradient of ``sparsify``: shapes as there, ``grad`` like its result."""
    x, grad = x.contiguous(), grad.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), BLOCK),)
        sparsify_backward_kernel[grid](
            x, grad, out, x.numel(), RELU2=relu2, MASKED=masked, BLOCK=BLOCK, num_warps=WARPS
        )
    return out


@sparsify.register_fake
def _(x: Tensor, relu2: bool, masked: bool) -> Tensor:
    return x.new_empty(x.shape)


@sparsify_backward.register_fake
def _(x: Tensor, grad: Tensor, relu2: bool, masked: bool) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx, inputs, output):
    x, ctx.relu2, ctx.masked = inputs
    # the plain straight-through step is the identity in backward and needs nothing
    ctx.save_for_backward(*((x,) if ctx.relu2 or ctx.masked else ()))


def _backward(ctx, grad):
    if not (ctx.relu2 or ctx.masked):
        return grad, None, None
    return sparsify_backward(ctx.saved_tensors[0], grad, ctx.relu2, ctx.masked), None, None


sparsify.register_autograd(_backward, setup_context=_save)
