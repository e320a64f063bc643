"""How weights start.

Full-rank matrices, embedding, head and routers are normal with the configured standard deviation, norms are one. The
factors of a low-rank layer start in one of four ways, below.

Shape suffixes: I input features, O output features, R rank.
"""

from __future__ import annotations

import torch
from torch import nn

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.experts import Router
from elas_lightning.nn.linear import LowRankLinear


def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Fill every weight of a model in place.

    Args:
        model: What to fill; its modules decide what happens to their weights.
        config: ``initialization`` and ``initializer_range``.
    """
    for module in model.modules():
        if isinstance(module, LowRankLinear):
            match config.initialization:
                case "xavier":
                    _xavier(module)
                case "cola":
                    _cola(module)
                case "spectral":
                    _spectral(module, config.initializer_range)
                case "wide_lowrank":
                    _wide_lowrank(module)
        elif isinstance(module, nn.Linear | nn.Embedding | Router):
            nn.init.normal_(module.weight, std=config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


def _xavier(layer: LowRankLinear) -> None:
    """LORO (ICLR 2025), and with it ELAS: each factor Xavier-normal by its own shape, no correction for R.

    An entry of the product then has variance ``4 R / ((I + R)(O + R))``.
    """
    nn.init.xavier_normal_(layer.A)
    nn.init.xavier_normal_(layer.B)


def _cola(layer: LowRankLinear) -> None:
    """CoLA (arXiv 2502.10940, released code): an entry of the product has variance ``1 / (I + O)``.

    Both factors carry the same scale, ``(I + O)^(-1/4) R^(-1/4)``.
    """
    rank, d_in = layer.A.shape
    scale = (rank * (d_in + layer.B.shape[0])) ** -0.25
    nn.init.normal_(layer.A, std=scale)
    nn.init.normal_(layer.B, std=scale)


@torch.no_grad()
def _spectral(layer: LowRankLinear, std: float) -> None:
    """Khodak et al. (arXiv 2103.01029): the best rank-R approximation of a full-rank start.

    The truncated SVD of a normal matrix with the full-rank standard deviation, its singular values split
    evenly between the factors.
    """
    weight_OI = torch.empty(layer.B.shape[0], layer.A.shape[1], dtype=torch.float32, device=layer.A.device)
    nn.init.normal_(weight_OI, std=std)
    left_OK, value_K, right_KI = torch.linalg.svd(weight_OI, full_matrices=False)
    rank = layer.A.shape[0]
    root_R = value_K[:rank].sqrt()
    layer.A.copy_(root_R[:, None] * right_KI[:rank])
    layer.B.copy_(left_OK[:, :rank] * root_R)


def _wide_lowrank(layer: LowRankLinear) -> None:
    """Nait Saada & Tanner (arXiv 2301.13710): random coefficients in an orthonormal basis of R directions.

    Their analysis of wide networks shows that rank enters through the ratio ``γ = R / O``: it multiplies the
    weight variance that decides whether signals vanish, so the variance must be divided by it. Taken from
    there: B has orthonormal columns, A is normal with variance ``σ² / (γ I)``. We set σ² = 1, the value that
    keeps the mean square of the features that a linear layer passes on; their critical values for particular
    activations are not taken, because here normalisation precedes every block.
    """
    rank, d_in = layer.A.shape
    nn.init.orthogonal_(layer.B)
    nn.init.normal_(layer.A, std=(layer.B.shape[0] / (rank * d_in)) ** 0.5)
