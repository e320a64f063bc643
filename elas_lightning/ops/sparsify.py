"""2:4 sparsification with its two gradients.

Shape suffixes: N features along the 2:4 axis; "..." any other dimensions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from elas_lightning.ops.backend import check_kernel_dtype, resolve_backend
from elas_lightning.ops.reference import check_24, keep_mask_24, zero_dropped

Gradient = Literal["ste", "masked"]


class _StraightThrough24(torch.autograd.Function):
    """Backward is the identity, so nothing is saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return zero_dropped(x, keep_mask_24(x, dim))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class KeptOnly(torch.autograd.Function):
    """Backward lets through what forward kept, and can itself be differentiated; one byte an entry is saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, keep: Tensor) -> Tensor:
        return zero_dropped(x, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return KeptOnly.apply(grad, keep), None


class _Relu2StraightThrough24(torch.autograd.Function):
    """Saves the pre-activation alone, which the linear layer before it does not keep."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        activated = x.relu()
        activated = activated * activated
        return zero_dropped(activated, keep_mask_24(activated, x.dim() - 1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x.relu() * grad


def check_gradient(gradient: str) -> None:
    """Refuse, by a ValueError, what is no gradient of the 2:4 step."""
    if gradient not in ("ste", "masked"):
        raise ValueError(f"gradient {gradient!r} is unknown: choose ste or masked")


def sparsify_24(x: Tensor, dim: int = -1, *, gradient: Gradient = "ste", backend: str = "auto") -> Tensor:
    """Keep the two largest magnitudes of every four consecutive entries, zero the rest.

    Equal magnitudes: the lower index wins. NaN ranks above infinity, so that it stays visible. Kept entries
    are bit for bit those of ``x``; the others are positive zero.

    Args:
        x: ``(..., N, ...)`` float16, bfloat16, float32 or float64, any strides; N a multiple of 4.
        dim: Axis of N.
        gradient: ``ste``: the step is the identity in backward (ELAS, arXiv 2605.03667); ``masked``: only
            kept entries carry gradient, which is the exact derivative wherever no two magnitudes are equal.
        backend: ``auto`` or a backend's name, see ``resolve_backend``.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: N is not a multiple of 4, no such axis, unsupported dtype, or unknown gradient.
        UserError: A backend that is unknown or cannot run here (a ValueError, too).
    """
    check_gradient(gradient)
    dim = check_24(x, dim)
    if resolve_backend(backend, x.device).chosen == "triton":
        return _kernel(x.movedim(dim, -1), False, gradient).movedim(-1, dim)
    if gradient == "ste":
        return _StraightThrough24.apply(x, dim)
    return KeptOnly.apply(x, keep_mask_24(x, dim))


def relu2_sparsify_24(x: Tensor, *, gradient: Gradient = "ste", backend: str = "auto") -> Tensor:
    """``sparsify_24(relu(x)**2)`` along the last axis, the hidden step of ELAS (arXiv 2605.03667).

    With ``ste`` one tensor is saved for backward instead of the two that the composition would keep.

    Args:
        x: ``(..., N)`` pre-activations, N a multiple of 4.
        gradient: As in ``sparsify_24``; the derivative of ReLU² applies in both.
        backend: ``auto`` or a backend's name, see ``resolve_backend``.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: As in ``sparsify_24``.
        UserError: As in ``sparsify_24``.
    """
    check_gradient(gradient)
    check_24(x, -1)
    if resolve_backend(backend, x.device).chosen == "triton":
        return _kernel(x, True, gradient)
    if gradient == "ste":
        return _Relu2StraightThrough24.apply(x)
    relu = x.relu()
    # no square: it is a power, which autocast on a GPU computes and keeps in float32
    return sparsify_24(relu * relu, gradient=gradient, backend="reference")


def _kernel(x: Tensor, relu2: bool, gradient: Gradient) -> Tensor:
    check_kernel_dtype(x)
    from elas_lightning.ops.kernels.sparsify import sparsify

    return sparsify(x, relu2, gradient == "masked")
