"""An FFN whose weight gradients see features made 2:4 along the tokens (Haziza et al., arXiv 2503.16672).

A sparse tensor core shortens the axis that a product sums over. Forward and the gradients of activations sum over
features, and the forward's own pattern serves them; the gradients of weights sum over tokens, so for them every
feature is made 2:4 again, along groups of four tokens. Two things keep that from hurting: tokens are grouped after a
fixed permutation, since neighbours in a text fire together, and the least sparse features stay as they are (on
hardware: a second, small dense product).

This is the recipe's arithmetic with masks and dense products, to learn what it does to training. It saves no time.

Shape suffixes: T tokens, R rank (or model width), F hidden features, O output rank; "..." batch and time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.ops.backend import autocast_dtype
from elas_lightning.ops.patterns import random_bits
from elas_lightning.ops.reference import keep_mask_24, zero_dropped


def feature_wise_keep(hidden_TF: Tensor, *, dense_share: float, permute: bool) -> Tensor:
    """Which entries take part in products that sum over tokens.

    Args:
        hidden_TF: Hidden features after the forward's step. A last group of fewer than four tokens counts as filled
            up with zeros, as a kernel would.
        dense_share: The share of features, rounded up to whole ones, that keep all their entries: those with the fewest
            zeros; of equal ones the lower index.
        permute: Whether tokens are grouped after a permutation, which depends on their number alone, or as they
            come.

    Returns:
        ``(T, F)`` boolean.
    """
    tokens, features = hidden_TF.shape
    place_T = torch.arange(tokens, device=hidden_TF.device)
    if permute:
        place_T = random_bits((tokens,), 0, hidden_TF.device).argsort()
    grouped = F.pad(hidden_TF[place_T], (0, 0, 0, -tokens % 4))
    keep_TF = keep_mask_24(grouped, 0)[:tokens][place_T.argsort()]
    dense = math.ceil(dense_share * features)
    least_sparse = (hidden_TF != 0).sum(0).sort(descending=True, stable=True).indices[:dense]
    return keep_TF.index_fill(1, least_sparse, True)


def feature_wise_ffn(
    factors: Sequence[tuple[Tensor, Tensor]],
    combine: Callable[..., Tensor],
    step: Callable[[Tensor], Tensor],
    down: Tensor,
    *,
    dense_share: float,
    permute: bool,
) -> Tensor:
    """``S(act(z upᵀ, ...)) downᵀ`` with feature-wise sparse weight gradients.

    One mask, made of the sparse hidden features, applies in both weight gradients: to these features in that of
    ``down``, and to the gradients of the pre-activations in those of ``up``. It comes on top of the forward's step:
    with that step's masked gradient both products see entries that both masks keep (the paper's recipe), with the
    straight-through gradient those of ``up`` see the second mask alone.

    Args:
        factors: For each pre-activation ``z (..., R)`` and ``up (F, R)``: one, or gate and up.
        combine: From the pre-activations ``(..., F)`` to hidden features ``(..., F)``.
        step: The forward's sparsity step with its gradient; called twice, it must give the same result.
        down: ``(O, F)``.
        dense_share: As in ``feature_wise_keep``.
        permute: As in ``feature_wise_keep``.

    Returns:
        ``(..., O)``.
    """
    dtype = autocast_dtype(down)
    if dtype is not None:
        factors = [(z.to(dtype), up.to(dtype)) for z, up in factors]
        down = down.to(dtype)
    with torch.no_grad():
        values = [F.linear(z, up) for z, up in factors]
        hidden = step(combine(*values))
        keep_TF = feature_wise_keep(hidden.flatten(0, -2), dense_share=dense_share, permute=permute)
    linear = _KeptInWeightGradient.apply
    hidden = step(combine(*(linear(z, up, keep_TF, False) for z, up in factors)))
    return linear(hidden.to(down.dtype), down, keep_TF, True)


class _KeptInWeightGradient(torch.autograd.Function):
    """``x weightᵀ``; the weight's gradient sums over kept entries of ``x``, or of the output's gradient, alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, keep: Tensor, of_input: bool) -> Tensor:
        ctx.save_for_backward(x, weight, keep)
        ctx.of_input = of_input
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, keep_TF = ctx.saved_tensors
        grad_TO, x_TI = grad.flatten(0, -2), x.flatten(0, -2)
        if ctx.of_input:
            x_TI = zero_dropped(x_TI, keep_TF)
        else:
            grad_TO = zero_dropped(grad_TO, keep_TF)
        return grad @ weight, grad_TO.t() @ x_TI, None, None
