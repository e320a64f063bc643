"""The core of an ungated FFN between its low-rank factors.

Shape suffixes: R rank (or model width, at full rank), F hidden features (d_ff), O output rank; "..." tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops.autocast import autocast, product_dtype
from elas_lightning.ops.backend import check_kernel_dtype, check_sparse_product_dtype, resolve_backend
from elas_lightning.ops.measured import Case, Direction
from elas_lightning.ops.sparsify import Gradient, check_gradient, relu2_sparsify_24, sparsify_24
from elas_lightning.ops.storage import stored_ffn

Activation = Literal["relu2", "relu", "gelu", "silu"]
Storage = Literal["dense", "packed", "recompute"]
# Backends of the sparse tensor cores: for 2:4 after squared ReLU, in 16 bits, and without dense hidden features.
_SPARSE_PRODUCTS = ("hopper", "cusparselt", "cusparselt_compress")


def _relu2(x: Tensor) -> Tensor:
    """Squared ReLU (Primer, arXiv 2109.08668)."""
    relu = F.relu(x)
    return relu * relu  # no square: it is a power, which autocast on a GPU computes and keeps in float32


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu2": _relu2, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


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


def check_factors(z: Tensor, up: Tensor, down: Tensor) -> None:
    """Refuse, by a ValueError, shapes other than ``(..., R)``, ``(F, R)`` and ``(F, O)``."""
    if up.dim() != 2 or down.dim() != 2 or z.shape[-1:] != up.shape[1:] or up.shape[0] != down.shape[0]:
        raise ValueError(
            f"z {tuple(z.shape)}, up {tuple(up.shape)}, down {tuple(down.shape)} do not fit: "
            "they must be (..., r), (d_ff, r), (d_ff, r_out)"
        )


def lowrank_ffn(
    z: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    activation: Activation = "relu2",
    sparsity: Literal["2:4"] | None = "2:4",
    gradient: Gradient = "ste",
    backend: str = "auto",
    storage: Storage = "dense",
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
        storage: What is kept for backward. ``dense``: the pre-activation and the hidden features, as autograd
            keeps them, or with backend ``hopper`` ReLU of the pre-activation alone; ``packed``: the hidden features
            in 2:4 form (F a multiple of 8); ``recompute``: nothing that is d_ff wide. The last two know squared
            ReLU alone, see ``ops/storage.py``. The same gradients to rounding.

    Returns:
        ``(..., O)``.

    Raises:
        ValueError: Shapes that do not fit, an unknown activation, sparsity, gradient or storage, or a storage
            that this FFN cannot have.
        UserError: A backend that is unknown or cannot run here, or cannot keep ``dense`` (a ValueError, too).
    """
    check_factors(z, up, down)
    if sparsity not in ("2:4", None):
        raise ValueError(f"sparsity {sparsity!r} is unknown: choose '2:4' or None")
    check_gradient(gradient)
    _check_storage(storage, activation, sparsity, up.shape[0])
    training = torch.is_grad_enabled() and (z.requires_grad or up.requires_grad or down.requires_grad)
    case = ffn_case(z, up, sparsity, training) if backend == "auto" and activation == "relu2" else None
    choice = resolve_backend(backend, z.device, case, storage)
    chosen, kept = choice.chosen, choice.storage or storage
    if chosen in _SPARSE_PRODUCTS:
        _check_sparse_product(chosen, activation, kept, training)
    if not training and (kept == "packed" or chosen in _SPARSE_PRODUCTS):
        kept = "recompute"  # nothing is kept without gradients
    # hopper is the one backend that keeps dense features by itself
    if kept == "dense" and not (chosen == "hopper" and sparsity is not None):
        return _composed(z, up, down, activation, sparsity, gradient, chosen)
    z, up, down = autocast(z, up, down)
    if chosen != "reference":
        check_kernel_dtype(z)
    if chosen in _SPARSE_PRODUCTS:
        check_sparse_product_dtype(z, chosen)
    out, _, _ = stored_ffn(z, up, down, sparsity is not None, gradient == "masked", kept != "recompute", chosen)
    return out


def _composed(
    z: Tensor, up: Tensor, down: Tensor, activation: Activation, sparsity: str | None, gradient: Gradient, backend: str
) -> Tensor:
    """The FFN as two products around its step, for autograd to keep what it likes."""
    hidden_F = F.linear(z, up)
    if sparsity is None:
        hidden_F = activate(hidden_F, activation)
    elif activation == "relu2":
        hidden_F = relu2_sparsify_24(hidden_F, gradient=gradient, backend=backend)
    else:
        hidden_F = sparsify_24(activate(hidden_F, activation), gradient=gradient, backend=backend)
    return F.linear(hidden_F, down.t())


def ffn_case(z: Tensor, up: Tensor, sparsity: str | None, training: bool) -> Case:
    """What ``auto`` looks up of an FFN: its sizes, and the dtype it is computed in."""
    dtype = str(product_dtype(z)).removeprefix("torch.")
    direction: Direction = "training" if training else "forward"
    tokens = z.numel() // max(1, z.shape[-1])
    return Case(up.shape[1], up.shape[0], tokens, dtype, sparsity, direction, torch.compiler.is_compiling())


def _check_sparse_product(backend: str, activation: str, storage: str, training: bool) -> None:
    if activation != "relu2":
        raise UserError(f"backend {backend!r} is for activation relu2, not {activation!r}: choose triton or reference")
    if not training:
        return
    if storage == "dense" and backend != "hopper":
        raise UserError(
            f"backend {backend!r} makes no dense hidden features to keep for backward: choose ffn_storage recompute"
            + (" or packed" if backend == "cusparselt" else "")
        )
    if storage == "packed" and backend != "cusparselt":
        reader, other = "only cuSPARSELt reads", "recompute"
        if backend == "hopper":
            reader, other = "its next kernel alone reads", "recompute or dense"
        raise UserError(f"backend {backend!r} packs in a form that {reader}: choose ffn_storage {other}")


def _check_storage(storage: str, activation: str, sparsity: str | None, features: int) -> None:
    if storage not in ("dense", "packed", "recompute"):
        raise ValueError(f"storage {storage!r} is unknown: choose dense, packed or recompute")
    if storage != "dense" and activation != "relu2":
        raise ValueError(f"storage {storage!r} is for activation relu2, not {activation!r}: choose dense")
    if storage == "packed" and sparsity is None:
        raise ValueError("storage 'packed' needs sparsity '2:4': choose dense or recompute for a dense FFN")
    multiple = 1 if sparsity is None else 8 if storage == "packed" else 4
    if features % multiple:
        needs = f"storage {storage!r}" if multiple == 8 else f"sparsity {sparsity!r}"
        raise ValueError(f"{needs} needs d_ff = {features} to be a multiple of {multiple}")
