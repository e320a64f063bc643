"""Small models that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from elas_lightning.nn import ModelConfig

Make = Callable[..., ModelConfig]
SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(97, (2, 12))


@pytest.fixture
def swiglu() -> Make:
    """Makes full-rank SwiGLU configurations; keywords change fields."""
    return lambda **changes: ModelConfig(**{**SIZES, **changes})


@pytest.fixture
def elas(swiglu: Make) -> Make:
    """Makes low-rank squared-ReLU configurations; keywords change fields."""
    return partial(swiglu, attention_rank=8, ffn_rank=12, ffn="relu2")
