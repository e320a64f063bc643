"""Linear maps at full and at low rank, without biases.

Shape suffixes: I input features, O output features, R rank; "..." batch and time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elas_lightning.nn.sparsity import SparsitySite


class LowRankLinear(nn.Module):
    """``y = B σ(A x)``: a weight of rank R kept as its two factors.

    Without σ this is LORO's and ELAS's layer (arXiv 2605.03667); with SiLU it is CoLA's (arXiv 2502.10940).

    Args:
        d_in: I.
        d_out: O.
        rank: R, at most the smaller of I and O.
        silu: Whether SiLU stands between the factors.
        site: Where 2:4 may be applied: after σ, on what the second factor reads. None: nowhere.

    Attributes:
        A: ``(R, I)``, which ``initialize`` fills.
        B: ``(O, R)``, likewise.
    """

    def __init__(self, d_in: int, d_out: int, rank: int, *, silu: bool, site: SparsitySite | None) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, d_in))
        self.B = nn.Parameter(torch.empty(d_out, rank))
        self.silu = silu
        self.site = site

    def reduce(self, x: Tensor) -> Tensor:
        """The first half, ``(..., I)`` to ``(..., R)``: factor A and what follows it."""
        return self.between(F.linear(x, self.A))

    def between(self, z: Tensor) -> Tensor:
        """What stands between the factors, ``(..., R)`` to ``(..., R)``."""
        if self.silu:
            z = F.silu(z)
        return z if self.site is None else self.site(z)

    def expand(self, z: Tensor) -> Tensor:
        """The second half, ``(..., R)`` to ``(..., O)``: factor B."""
        return F.linear(z, self.B)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., I)`` to ``(..., O)``."""
        return self.expand(self.reduce(x))

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"d_in={self.A.shape[1]}, d_out={self.B.shape[0]}, rank={self.A.shape[0]}, silu={self.silu}"


def make_linear(
    d_in: int, d_out: int, rank: int | None, *, silu: bool, site: SparsitySite | None = None
) -> nn.Linear | LowRankLinear:
    """The one place that chooses between full and low rank.

    Args:
        d_in: Input features.
        d_out: Output features.
        rank: Rank, or None for full rank.
        silu: CoLA's SiLU between the factors; a full-rank layer has no such place.
        site: 2:4 between the factors; a full-rank layer has no such place.

    Returns:
        A layer without bias.
    """
    if rank is None:
        return nn.Linear(d_in, d_out, bias=False)
    return LowRankLinear(d_in, d_out, rank, silu=silu, site=site)
