"""An FFN between its factors with random numbers, its results, and how far two of them are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elas_lightning.ops import lowrank_ffn
from elas_lightning.ops.storage import stored_ffn, stored_ffn_backward


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """z, up, down and the gradient of the output; down is the transposed view that the model passes."""
    tokens, rank, features, out_rank = shape
    z = torch.randn(tokens, rank, device=device).to(dtype)
    up = (torch.randn(features, rank, device=device) / rank**0.5).to(dtype)
    down = (torch.randn(out_rank, features, device=device) / features**0.5).to(dtype).t()
    return z, up, down, torch.randn(tokens, out_rank, device=device).to(dtype)


def results(tensors: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    """The output and the three gradients."""
    z, up, down = (t.detach().requires_grad_() for t in tensors[:3])
    out = lowrank_ffn(z, up, down, **options)
    return [out.detach(), *torch.autograd.grad(out, (z, up, down), tensors[3])]


def opcheck(tensors: tuple[Tensor, ...], *options: Any) -> None:
    """PyTorch's check of the operator and of its backward, which torch.compile relies on."""
    z, up, down, grad = tensors
    torch.library.opcheck(stored_ffn, (z.requires_grad_(), up.requires_grad_(), down.requires_grad_(), *options))
    with torch.no_grad():
        _, values, meta = stored_ffn(z, up, down, *options)
    arguments = (z.detach(), up.detach(), down.detach(), values, meta, grad, *options)
    torch.library.opcheck(stored_ffn_backward, arguments)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
