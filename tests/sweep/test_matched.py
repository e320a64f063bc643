"""The contenders of ``sweeps/matched_ablation.yaml`` match ELAS in what their labels say, at every size."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from elas_lightning.configuration import resolve
from elas_lightning.layout import shipped_folder
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.ffn import make_ffn
from elas_lightning.sweep.run import Request

# Not the sizes of sweeps/scaling.yaml: a rank is a whole number, and one of twelve is eight per cent.
SIZES = [*sorted(p.stem for p in (shipped_folder("experiments") / "sizes").glob("[!t]*.yaml")), "tiny"]


@cache
def contenders(size: str) -> dict[str, ModelConfig]:
    plan = Request("matched_ablation", size, "c4").plan()
    found = {}
    for label in plan.spec.search[0].options:
        request = plan.run({"model": label}, 0).request
        config = resolve(request.overlays, request.overrides)["model"]["config"]
        found[label] = ModelConfig.from_mapping(config)
    return found


def forward_products(config: ModelConfig) -> float:
    """Multiply-adds of one FFN for one token; a product costs the share of its input features that is kept."""
    kept = {"2:4": 1 / 2, "1:4": 1 / 4}[config.sparsity.pattern]
    first = kept if "ffn_input" in config.sparsity.placement else 1
    hidden = kept if "ffn_hidden" in config.sparsity.placement else 1
    width, features, rank = config.hidden_size, config.ffn_width, config.ffn_rank
    if rank is None:
        return first * width * features + hidden * features * width
    return first * width * rank + rank * features + hidden * features * rank + rank * width


def training_products(config: ModelConfig) -> float:
    """Forward, and the two products of each matrix in backward, which straight-through leaves dense."""
    rank, width, features = config.ffn_rank, config.hidden_size, config.ffn_width
    assert rank is not None
    return forward_products(config) + 2 * 2 * rank * (width + features)


def kept_numbers(config: ModelConfig, wide: float) -> float:
    """16-bit numbers that one FFN keeps for one token: its input, two rank-sized tensors, and what is d_ff wide."""
    assert config.ffn_rank is not None
    return config.hidden_size + 2 * config.ffn_rank + wide * config.ffn_width


@pytest.mark.parametrize("size", SIZES)
def test_matches_within_two_percent(size: str) -> None:
    models = contenders(size)
    elas = models["ELAS"]
    assert elas.ffn_rank is not None
    close = 0.02
    assert models["dense twin"].ffn_rank == elas.ffn_rank
    less = models["less rank, forward FLOPs"]
    assert forward_products(less) == pytest.approx(forward_products(elas), rel=close)
    less = models["less rank, training FLOPs"]
    assert training_products(less) == pytest.approx(training_products(elas), rel=close)
    less = models["less width, packed memory"]
    assert kept_numbers(less, 2) == pytest.approx(kept_numbers(elas, 9 / 16), rel=close)
    less = models["less width, paper's memory"]
    assert kept_numbers(less, 2) == pytest.approx(kept_numbers(elas, 2 * 9 / 16), rel=close)
    sparser = forward_products(models["full rank, 1:4 twice"]) / forward_products(elas)
    if elas.ffn_rank * 4 == elas.hidden_size:
        assert sparser == pytest.approx(1, rel=close)
    else:
        assert (size, round(sparser, 2)) == ("130m", 0.75)
    # only the FFN differs
    for config in models.values():
        assert (config.attention_rank, config.hidden_size) == (elas.attention_rank, elas.hidden_size)


@pytest.mark.parametrize("size", ["tiny", "60m"])
def test_no_rank_matches_the_memory(size: str) -> None:
    models = contenders(size)
    elas = models["ELAS"]
    assert models["dense twin"].ffn_rank is not None
    of_no_rank = elas.hidden_size + 2 * elas.ffn_width
    assert of_no_rank > kept_numbers(elas, 2 * 9 / 16)


@pytest.mark.parametrize("label", ["ELAS", "dense twin", "less width, packed memory", "less width, paper's memory"])
def test_the_account_of_memory_is_what_autograd_keeps(label: str) -> None:
    """At size tiny, in bfloat16: bytes of what backward needs that are neither weights nor counted twice."""
    config = contenders("tiny")[label]
    if label == "ELAS":
        config = ModelConfig(**{**vars(config), "ffn_storage": "packed"})
    ffn = make_ffn(config, 0).to(torch.bfloat16)
    weights = {parameter.data_ptr() for parameter in ffn.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = ffn(torch.randn(16, config.hidden_size, dtype=torch.bfloat16))
    wide = 9 / 16 if label == "ELAS" else 2
    assert sum(kept.values()) == 16 * 2 * kept_numbers(config, wide)
    assert out.requires_grad
