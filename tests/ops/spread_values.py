"""Values for numerical derivatives of a selection."""

import math

import torch
from torch import Tensor


def apart(*shape: int) -> Tensor:
    """float64 values far enough apart that no small step changes their order."""
    count = math.prod(shape)
    signs = torch.randint(2, (count,)) * 2 - 1
    return ((torch.randperm(count) + 1) * 0.1 * signs).double().reshape(shape).requires_grad_()
