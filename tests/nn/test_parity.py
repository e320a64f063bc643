"""With the same weights, the same logits as transformers' models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.linear import LowRankLinear

transformers = pytest.importorskip("transformers", reason="parity runs where transformers is installed")

SHAPES = [
    {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4},
    {"vocab_size": 130, "hidden_size": 48, "intermediate_size": 100, "num_layers": 3, "num_heads": 2},
    {"vocab_size": 64, "hidden_size": 40, "intermediate_size": 112, "num_layers": 1, "num_heads": 10},
]


def merged_weights(model: Llama) -> dict[str, Tensor]:
    """Our weights under their names, low-rank factors multiplied out."""
    weights = {}
    for name, module in model.named_modules():
        prefix = name if name == "lm_head" else f"model.{name}"
        if isinstance(module, LowRankLinear):
            weights[f"{prefix}.weight"] = module.B @ module.A
        elif isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.RMSNorm):
            weights[f"{prefix}.weight"] = module.weight
    return weights


def randomise(model: Llama) -> None:
    """Weights large enough that every part of the model shows in the logits, norms included."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif not name.endswith((".A", ".B")):
                parameter.mul_(4.0)


def theirs(config: ModelConfig, kind: str) -> Any:
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "arcee": (transformers.ArceeConfig, transformers.ArceeForCausalLM),
    }[kind]
    return model_class(
        config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=64,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()


@torch.no_grad()
def assert_same_logits(config: ModelConfig, kind: str) -> None:
    model, other = Llama(config), theirs(config, kind)
    randomise(model)
    other.load_state_dict(merged_weights(model), strict=True)
    for batch, time in ((1, 1), (2, 17), (3, 64)):
        input_ids = torch.randint(config.vocab_size, (batch, time))
        logits = model(input_ids)
        assert logits.std() > 0.1  # else equality would say little
        torch.testing.assert_close(logits, other(input_ids=input_ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rope_theta", [10000.0, 500.0])
def test_full_rank_swiglu_is_llama(shape: dict[str, int], rope_theta: float) -> None:
    assert_same_logits(ModelConfig(**shape, rope_theta=rope_theta), "llama")


@pytest.mark.parametrize("shape", SHAPES)
def test_low_rank_swiglu_is_llama_with_factors_multiplied_out(shape: dict[str, int]) -> None:
    assert_same_logits(ModelConfig(**shape, attention_rank=8, ffn_rank=16), "llama")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [{}, {"attention_rank": 8, "ffn_rank": 16}])
def test_ungated_squared_relu_is_arcee(shape: dict[str, int], ranks: dict[str, int]) -> None:
    assert_same_logits(ModelConfig(**shape, **ranks, ffn="relu2"), "arcee")
