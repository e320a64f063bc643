"""What autocast would do to the operands of a product, for operators that it does not know."""

from __future__ import annotations

import torch
from torch import Tensor


def _is_on(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)  # of the meta device torch cannot say


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply ``x`` in; its own dtype where autocast is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if _is_on(device) else x.dtype


def autocast(*operands: Tensor) -> tuple[Tensor, ...]:
    """Operands as autocast would have them; themselves where it is off."""
    device = operands[0].device.type
    if not _is_on(device):
        return operands
    dtype = torch.get_autocast_dtype(device)
    return tuple(operand.to(dtype) for operand in operands)
