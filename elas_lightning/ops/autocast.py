"""What autocast would do to the operands of a product, for operators that it does not know."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply ``x`` in; its own dtype where autocast is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def autocast(*operands: Tensor) -> tuple[Tensor, ...]:
    """Operands as autocast would have them; themselves where it is off."""
    device = operands[0].device.type
    if not torch.is_autocast_enabled(device):
        return operands
    dtype = torch.get_autocast_dtype(device)
    return tuple(operand.to(dtype) for operand in operands)
