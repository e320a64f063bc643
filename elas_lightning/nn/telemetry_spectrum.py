"""Effective rank of weights and activations.

Shape suffixes: M, N rows and columns of a matrix, R rank of its factors.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from elas_lightning.nn.ffn import ffns
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.llama import Llama


def effective_rank(singular_values: Tensor) -> float:
    """The exponential of the entropy of the singular values as shares of their sum (Roy & Vetterli, EUSIPCO 2007).

    Args:
        singular_values: Of one matrix, in any order.

    Returns:
        From 1 (one of them is not zero) to their number (all are equal); 0 for a matrix of zeros.
    """
    values = singular_values.detach().double()
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def weight_singular_values(linear: nn.Module) -> Tensor:
    """Singular values of a layer's weight; of factors, those of ``B A`` without forming it.

    ``B = Q_B T_B`` and ``Aᵀ = Q_A T_A`` with orthonormal columns in both Q, so the R × R matrix ``T_B T_Aᵀ`` has the
    singular values of ``B A``. What CoLA puts between the factors is left out.

    Args:
        linear: An ``nn.Linear`` or a ``LowRankLinear``.

    Returns:
        ``(R,)`` for factors of rank R, else as many as the smaller dimension.
    """
    if isinstance(linear, LowRankLinear):
        t_RR = torch.linalg.qr(linear.B.detach().float(), mode="r").R
        s_RR = torch.linalg.qr(linear.A.detach().float().T, mode="r").R
        return torch.linalg.svdvals(t_RR @ s_RR.T)
    weight: Any = linear.weight  # what a rule makes of a parameter, where there is one
    return torch.linalg.svdvals(weight.detach().float())


def weight_ranks(model: Llama) -> list[dict[str, Any]]:
    """Effective rank of the FFN's up and down matrix, layer by layer; of experts the mean.

    Args:
        model: The plain module, not a compiled wrapper.

    Returns:
        A row a layer: ``layer``, ``effective_rank_up``, ``effective_rank_down``.
    """
    return [
        {
            "layer": layer,
            **{
                f"effective_rank_{name}": fmean(
                    effective_rank(weight_singular_values(ffn.get_submodule(f"{name}_proj"))) for ffn in ffns(block)
                )
                for name in ("up", "down")
            },
        }
        for layer, block in enumerate(model.layers)
    ]
