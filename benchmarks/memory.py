"""Where the memory of one training step goes: weights, gradients, optimizer, activations, logits, and the peak.

Weights, gradients and optimizer state are walked, tensor by tensor. On a GPU activations and logits are differences
of what the allocator has handed out; on a CPU, whose allocator tells nothing, activations are what autograd's hooks
see saved, and logits and peak are unknown (``None``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

T = TypeVar("T")


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]


def kept_bytes(call: Callable[[], T], known: Iterable[Tensor]) -> tuple[T, int]:
    """What a forward pass returns, and the bytes that autograd keeps of it for backward.

    Args:
        call: The forward pass.
        known: Tensors that are there anyway, such as parameters and inputs.
    """
    before = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        returned = call()
    return returned, sum(kept.values())


def memory_split(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hidden: Callable[[], Tensor],
    loss: Callable[[Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager[None]],
) -> dict[str, int | None]:
    """Take one step and account for it.

    Args:
        model: With its weights.
        optimizer: Of the model; it takes a step, so that it has its state.
        hidden: Everything before the head.
        loss: Head and loss of the hidden features.
        autocast: Makes the context that the forward pass runs in.

    Returns:
        Bytes: ``weights``, ``gradients``, ``optimizer``, ``activations`` (kept between forward and backward, without
        head and loss), ``logits`` (what head and loss take at their worst, beyond that), ``peak`` (of the step, without
        what others hold, such as the contenders beside this one).
    """
    device = next(model.parameters()).device
    cuda = device.type == "cuda"

    def allocated() -> int:
        return torch.cuda.memory_allocated(device) if cuda else 0

    optimizer.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = allocated()
    others = before - _bytes([*model.parameters(), *model.buffers(), *_state(optimizer)])
    with autocast():
        # on a GPU the allocator tells more: hooks would miss what no operator has saved
        features, activations = (hidden(), 0) if cuda else kept_bytes(hidden, model.parameters())
        after_hidden, peak = allocated(), 0
        if cuda:  # else the forward pass's own peak would count as that of the logits
            peak = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        total = loss(features)
    logits = torch.cuda.max_memory_allocated(device) - after_hidden if cuda else None
    activations = after_hidden - before if cuda else activations
    total.backward()  # type: ignore[no-untyped-call]
    gradients = _bytes(p.grad for p in model.parameters() if p.grad is not None)
    optimizer.step()
    split: dict[str, int | None] = {
        "weights": _bytes(model.parameters()),
        "gradients": gradients,
        "optimizer": _bytes(_state(optimizer)),
        "activations": activations,
        "logits": logits,
        "peak": max(peak, torch.cuda.max_memory_allocated(device)) - others if cuda else None,
    }
    optimizer.zero_grad(set_to_none=True)
    return split
