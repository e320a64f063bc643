"""The account against published sizes, real models and torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elas_lightning.nn import Llama, ModelConfig, SparsityConfig
from elas_lightning.nn.account import count_parameters, flops_per_token

# hidden size, SwiGLU width, layers, heads, rank; parameters in millions as the ELAS paper (2605.03667) prints
# them: full rank, low-rank SwiGLU; last, low-rank ungated as the widths above give it
SIZES = {
    "60m": (512, 1376, 8, 8, 128, 58, 43, 42.247),
    "130m": (768, 2048, 12, 12, 256, 134, 94, 91.639),
    "350m": (1024, 2736, 24, 16, 256, 368, 185, 179.029),
    "1b": (2048, 5461, 24, 32, 512, 1339, 609, 584.157),
}


def config(size: str, **changes: Any) -> ModelConfig:
    hidden, intermediate, layers, heads, *_ = SIZES[size]
    return ModelConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads, **changes
    )


@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_counts(size: str) -> None:
    *_, rank, full, low, ungated = SIZES[size]
    ranks = {"attention_rank": rank, "ffn_rank": rank}
    assert count_parameters(config(size))["total"] / 1e6 == pytest.approx(full, rel=0.01)
    assert count_parameters(config(size, **ranks))["total"] / 1e6 == pytest.approx(low, rel=0.01)
    assert count_parameters(config(size, **ranks, ffn="relu2"))["total"] / 1e6 == pytest.approx(
        ungated, abs=1e-3
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
@pytest.mark.parametrize("low_rank", [False, True])
def test_parameters_of_the_real_model(size: str, ffn: Any, low_rank: bool) -> None:
    ranks = {"attention_rank": 64, "ffn_rank": SIZES[size][4]} if low_rank else {}
    described = config(size, ffn=ffn, **ranks)
    with torch.device("meta"):
        model = Llama(described)
    counted = dict.fromkeys(("embedding", "attention", "ffn", "norms", "head"), 0)
    for name, parameter in model.named_parameters():
        parts = {
            "embed": "embedding",
            "self_attn": "attention",
            "mlp": "ffn",
            "norm": "norms",
            "lm_head": "head",
        }
        counted[
            next(part for key, part in parts.items() if key in name.replace("attention_layernorm", "norm"))
        ] += parameter.numel()
    assert count_parameters(described) == {**counted, "total": sum(counted.values())}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ffn": "relu2"},
        {"attention_rank": 8, "ffn_rank": 12},
        {"attention_rank": 8, "ffn_rank": 12, "ffn": "relu2", "bottleneck_activation": "silu"},
        {"ffn_rank": 12, "ffn": "relu2", "sparsity": SparsityConfig(("ffn_hidden", "attention_input"))},
    ],
)
def test_flops_are_those_that_torch_counts(swiglu, changes: dict[str, Any]) -> None:
    batch, time = 2, 16
    described = swiglu(**changes)
    model = Llama(described)
    input_ids = torch.randint(97, (batch, time))
    # the plain attention: the fused one recomputes scores in backward, which is not counted as work done
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            logits = model(input_ids)
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    account = flops_per_token(described, time)
    assert account["forward"] * batch * time == forward.get_total_flops()
    assert account["backward"] * batch * time == backward.get_total_flops()
    assert account["total"] == account["forward"] + account["backward"]
    parts = {"attention", "attention_scores", "ffn", "head"}
    assert sum(account[part] for part in parts) == account["forward"]


def test_only_attention_scores_grow_with_the_sequence() -> None:
    short, long = (flops_per_token(config("60m"), time) for time in (256, 512))
    assert long["attention_scores"] == 2 * short["attention_scores"]
    assert long["forward"] - short["forward"] == short["attention_scores"]
