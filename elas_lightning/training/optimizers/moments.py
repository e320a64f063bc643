"""What Adam keeps of a parameter: its direction worked out by hand, and its memory wiped at a restart."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def reset_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Forget what an optimizer remembers of some parameters, as LORO and ReLoRA do at their restarts.

    Every running average of the parameter's size or a subspace's is set to zero, and the count of steps that
    corrects their bias with it. Nothing is freed or allocated. A parameter that has not been stepped yet has
    nothing to forget.

    Args:
        optimizer: Any of this package's, or AdamW.
        parameters: Some of its parameters.
    """
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer", "step"):
            if key in state:
                state[key].zero_()


def adam_direction(gradient: Tensor, state: dict[str, Tensor], *, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's step before the learning rate (arXiv 1412.6980, algorithm 1), for those who do not apply it as it is.

    Args:
        gradient: Of any shape; its running averages have the same.
        state: ``exp_avg``, ``exp_avg_sq`` and ``step``, made at the first call and updated in place.
        betas: Decay of the two moments.
        eps: Added to the denominator.

    Returns:
        The direction, in the shape of ``gradient``.
    """
    if "exp_avg" not in state:
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
        # torch's own AdamW keeps it so, and checkpoints keep it as it is
        state["step"] = torch.zeros((), dtype=torch.float32)
    state["step"] += 1
    mean, square, step = state["exp_avg"], state["exp_avg_sq"], float(state["step"])
    mean.lerp_(gradient, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    denominator = (square / (1 - betas[1] ** step)).sqrt_().add_(eps)
    return mean / (1 - betas[0] ** step) / denominator
