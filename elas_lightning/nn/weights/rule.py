"""What the methods share: a rule makes the weight of one layer and may change it between two steps.

What forward needs lies in parameters and buffers, so a checkpoint holds it, and a loaded model is the model that was
validated. What a rule does between two steps depends on the step alone. Forward never asks for the step, so a
compiled model is not compiled anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """Where in a run one is, between two optimizer steps.

    Attributes:
        step: Optimizer steps taken.
        total: Steps of the whole run.
        restart_every: Steps from one restart of the schedule to the next.
    """

    step: int
    total: int
    restart_every: int


class WeightRule(nn.Module):
    """How a layer's weight comes from the parameter that stands for it: a parametrization in torch's sense.

    ``forward`` makes the weight; the other methods do nothing unless a subclass says otherwise.
    """

    def enter(self, parameter: nn.Parameter, place: Place) -> None:
        """Set what a checkpoint does not hold, before the first step of a run or of its continuation.

        Args:
            parameter: What stands for the weight.
            place: Where the run is, with ``step`` 0 at its start.
        """

    def add_decay(self, parameter: nn.Parameter) -> None:
        """Add to the gradient that all micro-batches and clipping have made, before the optimizer's step."""

    def after_step(self, parameter: nn.Parameter, place: Place) -> Iterable[nn.Parameter]:
        """Change what is due after an optimizer step.

        Args:
            parameter: What stands for the weight.
            place: Where the run is.

        Returns:
            Parameters of which the optimizer should forget all it knows.
        """
        return ()


class _StraightThrough(torch.autograd.Function):
    """The gradient passes by what was done to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, used: Tensor) -> Tensor:
        return used.view_as(used)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(weight: Tensor, used: Tensor) -> Tensor:
    """``used``, whose gradient goes to ``weight`` as it is (Bengio et al., arXiv 1308.3432).

    Args:
        weight: What learns.
        used: What was made of it, of the same shape; gets no gradient.
    """
    return _StraightThrough.apply(weight, used.detach())
