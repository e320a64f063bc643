"""Autocast of a GPU leaves the hidden features in 16 bits; its rules are seen without one, on tensors without data."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from elas_lightning.ops import activate


@pytest.fixture
def hidden() -> Iterator[torch.Tensor]:
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        # a GPU has the data, too, and its fake tensors other ways
        with nullcontext() if torch.cuda.is_available() else FakeTensorMode(), torch.no_grad():
            yield torch.ones(3, 8, device="cuda", dtype=torch.bfloat16)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def test_a_square_would_not(hidden: torch.Tensor) -> None:
    assert hidden.relu().square().dtype == torch.float32


@pytest.mark.parametrize("activation", ["relu2", "relu", "gelu", "silu"])
def test_activations_stay_in_16_bits(hidden: torch.Tensor, activation: str) -> None:
    assert activate(hidden, activation).dtype == torch.bfloat16  # type: ignore[arg-type]
