"""The ReLU² FFN between its factors with little kept for backward.

Autograd, left alone, keeps the pre-activation and the hidden features of every token, both d_ff wide. Here
forward and backward go through the tokens chunk by chunk, and what lies between them is

- ``recompute``: ``z``, ``up`` and ``down`` alone; backward computes the hidden features again;
- ``packed``: these and the hidden features as ``pack_24`` stores them, 0.5625 of one dense copy in 16 bits.
  The masked gradient then needs no second product with ``up``, since ``relu(x) = sqrt(h)`` where h was kept;
  the straight-through gradient also needs ``relu(x)`` of what was dropped, which is computed again;
- ``dense`` with backend ``hopper``: these and ``relu(z upᵀ)``, one dense copy.

Both directions are custom operators, opaque to ``torch.compile``: a partitioner that saw the recomputation
would save its result instead.

Shape suffixes: T tokens, t tokens of a chunk, R rank, F hidden features, O output rank, K = F / 2, M = F / 8;
"..." leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops.steps import PlainSteps, TritonSteps

# The d_ff-wide workspaces of a chunk stay small beside what many layers would keep; a backend that knows its device
# takes a multiple. A whole number of the hardware's blocks (``ops/hardware_layout.py``): only the last is padded.
CHUNK_TOKENS = 8192


@cache
def _steps(backend: str) -> PlainSteps:
    if backend == "reference":
        return PlainSteps()
    if backend == "triton":
        return TritonSteps()
    if backend == "hopper":
        from elas_lightning.ops.hopper.steps import HopperSteps

        return HopperSteps()
    from elas_lightning.ops.cusparselt import CompressSteps, DirectSteps

    return DirectSteps() if backend == "cusparselt" else CompressSteps()


def computed_ffn(
    z: Tensor, up: Tensor, down: Tensor, sparse: bool, masked: bool, keeps: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``S(relu(z upᵀ)**2) down`` with little kept for backward; ``lowrank_ffn`` is its public face.

    Args:
        z: ``(..., R)``.
        up: ``(F, R)``.
        down: ``(F, O)``.
        sparse: Whether S is the 2:4 step, F then a multiple of 4, or nothing.
        masked: Whether dropped entries carry no gradient, or (straight-through) the step is the identity.
        keeps: Whether hidden features are kept: packed, which needs F to be a multiple of 8, or with ``hopper`` as they
            were before they were squared, dense; needs ``sparse``.
        backend: ``reference``, ``triton``, ``hopper``, ``cusparselt`` or ``cusparselt_compress``.

    Returns:
        ``(..., O)``; and, for backward alone, what is kept: ``values (T, K)`` and ``meta (T, M)``, or with
        ``cusparselt`` both in one buffer for each chunk (``ops/hardware_layout.py``), which is ``values``, or with
        ``hopper`` ``relu(z upᵀ)`` ``(T, F)`` as ``values``; empty without ``keeps``.
    """
    steps = _steps(backend)
    z_TR, up_FR, down_FO = z.reshape(-1, z.shape[-1]).contiguous(), up.contiguous(), steps.own_down(down)
    values, meta = _kept(z, up, keeps, backend)
    if not z_TR.shape[0]:  # nothing that a kernel could be launched for
        return z.new_empty((*z.shape[:-1], down.shape[1])), values, meta
    outs = []
    for chunk in _chunks(z_TR, _most(steps, up_FR, down_FO, sparse, keeps, backward=False)):
        z_tR = _rows(z_TR, chunk)
        if keeps:
            kept = _rows(values, chunk), _rows(meta, chunk)
            outs.append(steps.forward_keeping(z_tR, up_FR, down_FO, *kept))
        else:
            outs.append(steps.forward(z_tR, up_FR, down_FO, sparse))
    out_TO = torch.cat(outs) if len(outs) > 1 else outs[0].contiguous()
    return out_TO.reshape(*z.shape[:-1], down.shape[1]), values, meta


def ffn_gradients(
    z: Tensor,
    up: Tensor,
    down: Tensor,
    values: Tensor,
    meta: Tensor,
    grad: Tensor,
    sparse: bool,
    masked: bool,
    keeps: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``z``, ``up`` and ``down``, given that of the output, ``(..., O)``."""
    steps = _steps(backend)
    z_TR, up_FR, down_FO = z.reshape(-1, z.shape[-1]).contiguous(), up.contiguous(), down.contiguous()
    grad_TO = grad.reshape(-1, grad.shape[-1]).contiguous()
    if not z_TR.shape[0]:
        return z.new_empty(z.shape), up.new_zeros(up.shape), torch.zeros_like(down)
    grads_z, sums = [], None
    chunks = _chunks(z_TR, _most(steps, up_FR, down_FO, sparse, keeps, backward=True))
    # Sums over chunks are kept in float32, so that their number does not show in the result.
    wide = torch.promote_types(z.dtype, torch.float32)
    for chunk in chunks:
        z_tR, grad_tO = _rows(z_TR, chunk), _rows(grad_TO, chunk)
        if keeps:
            kept = _rows(values, chunk), _rows(meta, chunk)
            hidden_tF, grad_tF = steps.kept_backward(*kept, z_tR, up_FR, down_FO, grad_tO, masked)
        else:
            hidden_tF, grad_tF = steps.hidden_backward(z_tR, up_FR, down_FO, grad_tO, sparse, masked)
        grads_z.append(torch.mm(grad_tF, up_FR))
        products = [torch.mm(grad_tF.t(), z_tR), torch.mm(grad_tO.t(), hidden_tF)]
        if len(chunks) > 1:
            products = [product.to(wide) for product in products]
        sums = products if sums is None else [sum_.add_(more) for sum_, more in zip(sums, products, strict=True)]
    assert sums is not None
    if len(chunks) > 1:
        sums = [sum_.to(z.dtype) for sum_ in sums]
    grad_z_TR = torch.cat(grads_z) if len(grads_z) > 1 else grads_z[0]
    grad_down_FO = sums[1].t()
    # in the order of ``down``, which of a model's weight is the transposed one
    if down.stride() != grad_down_FO.stride():
        grad_down_FO = torch.empty_like(down).copy_(grad_down_FO)
    return grad_z_TR.reshape(z.shape), sums[0], grad_down_FO


def _most(steps: PlainSteps, up_FR: Tensor, down_FO: Tensor, sparse: bool, keeps: bool, backward: bool) -> int:
    return steps.most_kept_tokens(up_FR) if keeps else steps.most_tokens(up_FR, down_FO, sparse, backward)


def _chunks(z_TR: Tensor, most: int) -> list[slice]:
    """All tokens, in sizes that suit products."""
    size = max(1, most // CHUNK_TOKENS) * CHUNK_TOKENS
    return [slice(start, start + size) for start in range(0, z_TR.shape[0], size)]


def _rows(matrix: Tensor, chunk: slice) -> Tensor:
    """``matrix[chunk]``, without a view where it is all of it."""
    return matrix if chunk.start == 0 and chunk.stop >= matrix.shape[0] else matrix[chunk]


def _kept(z: Tensor, up: Tensor, keeps: bool, backend: str) -> tuple[Tensor, Tensor]:
    if not keeps:
        return z.new_empty((0, 0)), z.new_empty((0, 0), dtype=torch.uint8)
    return _steps(backend).empty_kept(z, z.numel() // z.shape[-1], up.shape[0])


def _fake_ffn(
    z: Tensor, up: Tensor, down: Tensor, sparse: bool, masked: bool, keeps: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty((*z.shape[:-1], down.shape[1])), *_kept(z, up, keeps, backend)


def _fake_gradients(z: Tensor, up: Tensor, down: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(z.shape), up.new_empty(up.shape), torch.empty_like(down)


_LIBRARY = torch.library.Library("elas", "FRAGMENT")


def _operator(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """What ``torch.library.custom_op`` makes, without its Python around each call, which outlasts small kernels."""
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"elas::{name}", fake, lib=_LIBRARY)
    found: torch._ops.OpOverload = getattr(torch.ops.elas, name).default
    return found


stored_ffn = _operator("lowrank_ffn", computed_ffn, _fake_ffn)
stored_ffn_backward = _operator("lowrank_ffn_backward", ffn_gradients, _fake_gradients)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        z, up, down, *ctx.options = inputs
        out, values, meta = _below_autograd(*inputs)
        ctx.mark_non_differentiable(values, meta)
        ctx.set_materialize_grads(False)  # theirs would be zeros
        ctx.save_for_backward(z, up, down, values, meta)
        return out, values, meta

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *of_kept: None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise UserError("this FFN has no second derivative: choose backend reference and ffn_storage dense")
        if grad is None:
            return (None,) * 7
        grads = stored_ffn_backward(*ctx.saved_tensors, grad, *ctx.options)
        return *grads, None, None, None, None


def _below_autograd(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        found: tuple[Tensor, Tensor, Tensor] = stored_ffn(*inputs)
        return found


def _with_autograd(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What autograd's dispatch key runs, instead of ``register_autograd``, which reads the schema at every call."""
    z, up, down = inputs[:3]
    if torch.is_grad_enabled() and (z.requires_grad or up.requires_grad or down.requires_grad):
        found: tuple[Tensor, Tensor, Tensor] = _Differentiable.apply(*inputs)
        return found
    return _below_autograd(*inputs)


_LIBRARY.impl("lowrank_ffn", _with_autograd, "Autograd")
