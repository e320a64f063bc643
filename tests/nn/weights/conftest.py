"""Small models of every method; sizes and seed are those of the folder above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from elas_lightning.nn import ModelConfig
from elas_lightning.nn.weights_config import WeightsConfig


@pytest.fixture
def with_method(swiglu: Callable[..., ModelConfig]) -> Callable[..., ModelConfig]:
    """Makes configurations of a method; ``model`` changes fields of the model, keywords those of the weights."""

    def make(method: Any, model: dict[str, Any] | None = None, **fields: Any) -> ModelConfig:
        ranks = {"attention_rank": 8, "ffn_rank": 12} if method in ("sltrain", "relora") else {}
        return swiglu(**ranks, **(model or {}), weights=WeightsConfig(method=method, **fields))

    return make
