"""Whole matrices for rules that need them, where training has sharded the parameters (FSDP2).

AdamW works entry by entry and so on any shard. LORO, Muon and GaLore decompose matrices: here a matrix is gathered,
moved as on one device, and every process keeps its shard of the result. All processes do the same work; what is kept is
that of the first one: the signs of singular vectors are free, and shards of two computations would not fit together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in one piece, on every process; any other as it is. A collective call where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(values: Tensor, like: Tensor, *, source: int | None = 0) -> Tensor:
    """This process's shard of a whole tensor.

    Args:
        values: In one piece; also what is returned where ``like`` is not sharded, or they are already.
        like: Says how to shard.
        source: The process whose values count; None: each its own, without communication, where they are the same.
    """
    if not isinstance(like, DTensor) or isinstance(values, DTensor):
        return values
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=source)


@contextmanager
def whole_matrix(parameter: Tensor, state: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Lend a parameter with its gradient, and its state, in one piece; take back what was made of them.

    Args:
        parameter: With a gradient, sharded or not; if not it is lent itself, and so is its state.
        state: What the optimizer remembers of it: sharded where it has the parameter's shape, else in one piece.
    """
    if not isinstance(parameter, DTensor):
        yield parameter, state
        return
    assert parameter.grad is not None
    matrix = whole(parameter.detach())
    matrix.grad = whole(parameter.grad)
    remembered = {key: whole(value) for key, value in state.items()}
    yield matrix, remembered
    parameter.copy_(shard_like(matrix, parameter))
    for key, value in remembered.items():
        state[key] = shard_like(value, parameter) if value.shape == parameter.shape else value
