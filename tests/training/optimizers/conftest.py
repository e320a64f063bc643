"""A model of one layer, and gradients to step it with."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.llama import Llama

MakeModel = Callable[..., Llama]


@pytest.fixture
def make_model() -> MakeModel:
    """Makes models of low rank in attention and FFN; keywords change fields."""

    def make(**changes: Any) -> Llama:
        torch.manual_seed(0)
        fields: dict[str, Any] = {
            "vocab_size": 24,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_layers": 1,
            "num_heads": 2,
            "attention_rank": 4,
            "ffn_rank": 6,
        }
        return Llama(ModelConfig(**{**fields, **changes}))

    return make


@pytest.fixture
def give_gradients() -> Callable[[Iterable[torch.nn.Parameter], int], None]:
    """Puts gradients that depend on nothing but a seed on parameters."""

    def give(parameters: Iterable[torch.nn.Parameter], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)

    return give
