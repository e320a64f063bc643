"""Matrices that learn through two factors: SLTrain's with a sparse part, ReLoRA's with a frozen one.

Both are one matrix to whoever reads them, ``W = (α / R) B A + rest``, made anew at each use: ``O I R`` multiply-adds
a micro-batch, whatever its tokens. SLTrain's code does so too; ReLoRA's multiplies a token by W and by both factors.

Shape suffixes: I input features, O output features, R rank, N entries of the sparse part.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from elas_lightning.nn.weights.rule import Place, WeightRule
from elas_lightning.nn.weights_config import WeightsConfig, sltrain_entries


class LowRankPart(WeightRule):
    """The factors, which start as LoRA's do (arXiv 2106.09685): A uniform in ``±1/√I``, B zero.

    Args:
        weight_OI: The full-rank weight, for its shape and device.
        rank: R.
        config: The fields of the method.

    Attributes:
        A: ``(R, I)``.
        B: ``(O, R)``.
    """

    def __init__(self, weight_OI: Tensor, rank: int, config: WeightsConfig) -> None:
        super().__init__()
        rows, columns = weight_OI.shape
        self.scale = config.alpha / rank
        self.A = nn.Parameter(weight_OI.new_empty(rank, columns).uniform_(-(columns**-0.5), columns**-0.5))
        self.B = nn.Parameter(weight_OI.new_zeros(rows, rank))

    def product(self) -> Tensor:
        """``(α / R) B A``, ``(O, I)``; in the parameters' dtype, also where autocast multiplies in another."""
        return self.scale * (self.B @ self.A).to(self.A.dtype)


class SparsePlusLowRank(LowRankPart):
    """SLTrain (arXiv 2406.02214): a product of factors plus a sparse matrix on a fixed random support.

    What stands for the weight is the vector of the sparse entries, equally many whatever the seed; where they belong
    is a buffer.
    """

    index: Tensor

    def __init__(self, weight_OI: Tensor, rank: int, config: WeightsConfig) -> None:
        super().__init__(weight_OI, rank, config)
        rows, columns = weight_OI.shape
        order = torch.randperm(rows * columns, device=weight_OI.device)
        self.register_buffer("index", order[: sltrain_entries(config, columns, rows)].sort().values)

    def forward(self, value_N: Tensor) -> Tensor:
        """The weight, ``(O, I)``."""
        dense_OI = self.product()
        return dense_OI.flatten().index_add(0, self.index, value_N).view_as(dense_OI)

    def right_inverse(self, weight_OI: Tensor) -> Tensor:
        """Where the sparse entries start: uniform in ``±1/√I``, as the paper's code has it; not from the weight."""
        bound = weight_OI.shape[1] ** -0.5
        return weight_OI.new_empty(self.index.shape).uniform_(-bound, bound)


class Restarted(LowRankPart):
    """ReLoRA (arXiv 2307.05695): a full-rank matrix learns itself at first, then stands still beside two factors.

    At each restart the factors' product is added to the matrix, which changes no output; A starts anew, B at zero,
    and the optimizer forgets both. What stands for the weight is the full-rank matrix.
    """

    seed: Tensor  # of all later starts of A

    def __init__(self, weight_OI: Tensor, rank: int, config: WeightsConfig) -> None:
        super().__init__(weight_OI, rank, config)
        self.cycles = config.relora_full_rank_cycles
        self.register_buffer("seed", torch.randint(2**62, (), dtype=torch.int64, device=weight_OI.device))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The weight, ``(O, I)``."""
        return weight_OI + self.product()

    def enter(self, parameter: nn.Parameter, place: Place) -> None:
        """Let learn what learns in this phase."""
        full = place.step < self.cycles * place.restart_every
        parameter.requires_grad_(full)
        self.A.requires_grad_(not full)
        self.B.requires_grad_(not full)

    @torch.no_grad()
    def after_step(self, parameter: nn.Parameter, place: Place) -> Iterable[nn.Parameter]:
        """Merge and start anew at a restart."""
        start = self.cycles * place.restart_every
        if place.step < max(start, 1) or place.step % place.restart_every:
            return ()
        if place.step == start:
            self.enter(parameter, place)
            return (parameter,)
        parameter.add_(self.product())
        # generators live on the CPU so that every device draws the same numbers
        generator = torch.Generator().manual_seed(int(self.seed) + place.step)
        bound = self.A.shape[1] ** -0.5
        self.A.copy_(torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator))
        self.B.zero_()
        return self.A, self.B
