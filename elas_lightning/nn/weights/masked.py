"""2:4 weights through a mask: SR-STE, transposable masks and ASP differ in when and how the mask is chosen.

The mask is a buffer. It is chosen between two optimizer steps and multiplied in forward; a dense phase is a mask
of ones. So validation, a resume and a loaded checkpoint see the very weights that training used.

Shape suffixes: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from elas_lightning.nn.weights.rule import Place, WeightRule, straight_through
from elas_lightning.nn.weights.transposable import transposable_mask
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.ops.reference import keep_mask_24


def magnitude_mask(weight_OI: Tensor) -> Tensor:
    """The two largest magnitudes of every four inputs of an output; ties as in ``sparsify_24``.

    Inputs beyond the last whole group are kept.
    """
    whole = weight_OI.shape[1] // 4 * 4
    mask = torch.ones_like(weight_OI, dtype=torch.bool)
    mask[:, :whole] = keep_mask_24(weight_OI.detach()[:, :whole].contiguous(), 1)
    return mask


class DecayingMask(WeightRule):
    """A mask chosen again and again; dropped weights keep their gradient and decay.

    SR-STE (arXiv 2102.04010): the gradient of the dense weight W is that of the sparse one plus
    ``λ (1 - mask) W``. Here the term joins the averaged and clipped gradient, so that it counts once a step and
    Adam scales it along; Hu et al. (arXiv 2404.01847, section 4) found that to be what works with Adam. Theirs
    is the same with a transposable mask, chosen every few steps, and a dense end.
    """

    mask: Tensor

    def __init__(self, weight_OI: Tensor, config: WeightsConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mask", self._choose(weight_OI))

    def _choose(self, weight_OI: Tensor) -> Tensor:
        choose = transposable_mask if self.config.method == "transposable" else magnitude_mask
        return choose(weight_OI)

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The sparse weight."""
        return straight_through(weight_OI, weight_OI * self.mask)

    @torch.no_grad()
    def add_decay(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            parameter.grad.add_(parameter * ~self.mask, alpha=self.config.decay)

    @torch.no_grad()
    def after_step(self, parameter: nn.Parameter, place: Place) -> Iterable[nn.Parameter]:
        if place.step >= round((1 - self.config.dense_end) * place.total) and self.config.dense_end:
            self.mask.fill_(True)
        elif place.step % self.config.mask_every == 0:
            self.mask.copy_(self._choose(parameter))
        return ()


class PruneOnce(WeightRule):
    """ASP (arXiv 2104.08378): train dense, prune to 2:4 by magnitude once, train on with that mask."""

    mask: Tensor

    def __init__(self, weight_OI: Tensor, config: WeightsConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mask", torch.ones_like(weight_OI, dtype=torch.bool))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The weight, sparse once it has been pruned; dropped entries get no gradient."""
        return weight_OI * self.mask

    @torch.no_grad()
    def after_step(self, parameter: nn.Parameter, place: Place) -> Iterable[nn.Parameter]:
        if place.step == max(1, round(self.config.asp_prune_at * place.total)):
            self.mask.copy_(magnitude_mask(parameter))
            parameter.mul_(self.mask)
        return ()
