"""The core of an ungated FFN between its low-rank factors.

Shape suffixes: R rank (or model width, at full rank), F hidden features (d_ff), O output rank; "..." tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from elas_lightning.ops.backend import resolve_backend
from elas_lightning.ops.sparsify import Gradient, check_gradient, relu2_sparsify_24, sparsify_24

Activation = Literal["relu2", "relu", "gelu", "silu"]


def _relu2(x: Tensor) -> Tensor:
    """Squared ReLU (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": _relu2,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an FFN activation by name.

    Args:
        x: Any shape.
        activation: ``relu2``, ``relu``, ``gelu`` (exact) or ``silu``.

    Returns:
        A tensor of the same shape; NaN stays NaN.

    Raises:
        ValueError: Unknown name.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown: choose one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[activation](x)


def lowrank_ffn(
    z: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    activation: Activation = "relu2",
    sparsity: Literal["2:4"] | None = "2:4",
    gradient: Gradient = "ste",
    backend: str = "auto",
) -> Tensor:
    """``S(act(z upᵀ)) down``: the FFN of ELAS (arXiv 2605.03667) without its outermost factors.

    The factor before (``z = A_up x``) and after (``y = B_down out``) stay with the caller, so that what a
    kernel may fuse is exactly what stands between two rank-sized tensors.

    Args:
        z: ``(..., R)``.
        up: ``(F, R)``.
        down: ``(F, O)``; a transposed view is fine.
        activation: ``relu2``, ``relu``, ``gelu`` or ``silu``.
        sparsity: ``2:4`` along the hidden features (F a multiple of 4), or None for a dense FFN.
        gradient: Of the 2:4 step, see ``sparsify_24``.
        backend: ``auto`` or a backend's name, see ``resolve_backend``.

    Returns:
        ``(..., O)``.

    Raises:
        ValueError: Shapes that do not fit, or an unknown activation, sparsity or gradient.
        UserError: A backend that is unknown or cannot run here (a ValueError, too).
    """
    if up.dim() != 2 or down.dim() != 2 or z.shape[-1:] != up.shape[1:] or up.shape[0] != down.shape[0]:
        raise ValueError(
            f"z {tuple(z.shape)}, up {tuple(up.shape)}, down {tuple(down.shape)} do not fit: "
            "they must be (..., r), (d_ff, r), (d_ff, r_out)"
        )
    if sparsity not in ("2:4", None):
        raise ValueError(f"sparsity {sparsity!r} is unknown: choose '2:4' or None")
    check_gradient(gradient)
    resolve_backend(backend, z.device)
    hidden_F = F.linear(z, up)
    if sparsity is None:
        hidden_F = activate(hidden_F, activation)
    elif activation == "relu2":
        hidden_F = relu2_sparsify_24(hidden_F, gradient=gradient)
    else:
        hidden_F = sparsify_24(activate(hidden_F, activation), gradient=gradient)
    return F.linear(hidden_F, down.t())
