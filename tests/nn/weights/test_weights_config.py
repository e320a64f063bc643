"""What a method refuses, and what a layer consists of: against the real modules and the papers' tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from typing import Any

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.weights.attach import weight_rules
from elas_lightning.nn.weights.decompose import sparse_plus_low_rank
from elas_lightning.nn.weights.rule import Place
from elas_lightning.nn.weights_config import WeightsConfig, layer_entries, oats_shape

METHODS = ["plain", "sltrain", "relora", "sr_ste", "s_ste", "transposable", "asp", "oats"]
Make = Callable[..., ModelConfig]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "prune"}, r"weights\.method = 'prune' .*choose one of plain, sltrain"),
        ({"layers": "attention"}, r"weights\.layers = 'attention' .*all, ffn"),
        ({"mask_every": 0}, r"weights\.mask_every = 0 .*at least 1"),
        ({"decay": -1.0}, r"weights\.decay = -1\.0 .*at least 0"),
        ({"decay": float("nan")}, r"weights\.decay = nan"),
        ({"decay": "2e-4"}, r"weights\.decay = '2e-4' .*at least 0"),
        ({"dense_end": None}, r"weights\.dense_end = None .*\[0, 1\)"),
        ({"sltrain_density": "dense"}, r"weights\.sltrain_density = 'dense' .*between 0 and 1"),
        ({"alpha": 0}, r"weights\.alpha = 0 .*above 0"),
        ({"sltrain_density": 1.0}, r"weights\.sltrain_density = 1\.0 .*between 0 and 1"),
        ({"asp_prune_at": 0.0}, r"weights\.asp_prune_at = 0\.0"),
        ({"oats_compression": 1}, r"weights\.oats_compression = 1 "),
        ({"oats_rank_ratio": -0.1}, r"weights\.oats_rank_ratio = -0\.1 .*\[0, 1\)"),
        ({"oats_pattern": "1:4"}, r"weights\.oats_pattern = '1:4' .*unstructured, 2:4"),
        ({"oats_pattern": "2:4", "oats_rank_ratio": 0.5}, r"weights\.oats_rank_ratio = 0\.5 .*below 0\.5"),
        ({"method": "asp", "dense_end": 0.1}, r"weights\.dense_end = 0\.1 .*asp has no dense end"),
        ({"relora_full_rank_cycles": -1}, r"weights\.relora_full_rank_cycles = -1"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^model\.config\." + message):
        WeightsConfig(**fields)


@pytest.mark.parametrize(
    ("method", "model", "message"),
    [
        ("sltrain", {"ffn_rank": None}, r"ffn_rank = None .*sltrain has factors"),
        ("relora", {"attention_rank": None}, r"attention_rank = None .*relora has factors"),
        ("sltrain", {"bottleneck_activation": "silu"}, r"bottleneck_activation = 'silu' .*nothing between"),
        ("sltrain", {"checkpointing": "bottleneck"}, r"checkpointing = 'bottleneck' .*choose block"),
        ("relora", {"initialization": "spectral"}, r"initialization = 'spectral' .*set it to xavier"),
        ("oats", {"ffn_rank": 8}, r"weights\.method = 'oats' .*set both ranks to null"),
    ],
)
def test_methods_refuse_models_that_they_do_not_fit(
    swiglu: Make, method: Any, model: dict[str, Any], message: str
) -> None:
    ranks = {"attention_rank": 8, "ffn_rank": 12} if method in ("sltrain", "relora") else {}
    with pytest.raises(UserError, match=message):
        swiglu(**{**ranks, **model}, weights=WeightsConfig(method=method))
    with pytest.raises(UserError, match=r"weights = 'plain' .*WeightsConfig"):
        swiglu(weights="plain")


def test_round_trip_through_plain_values(with_method: Make) -> None:
    config = with_method("transposable", dense_end=0.25)
    assert ModelConfig.from_mapping(asdict(config)) == config


@pytest.mark.parametrize(("method", "ffn"), [*product(METHODS, ["swiglu", "relu2"])])
def test_entries_are_those_of_the_real_layers(with_method: Make, method: Any, ffn: str) -> None:
    # groups and blocks of four do not divide 46 and 69
    config = with_method(method, {"ffn": ffn, "intermediate_size": 46}, relora_full_rank_cycles=0)
    model = Llama(config)
    for rule, parameter in weight_rules(model):
        rule.enter(parameter, Place(0, 10, restart_every=5))
    layers = {"attention": "self_attn.q_proj", "ffn": "mlp.down_proj"}
    for part, name in layers.items():
        layer = model.layers[0].get_submodule(name)  # type: ignore[union-attr]
        assert not isinstance(layer, LowRankLinear)
        rank = config.ffn_rank if part == "ffn" else config.attention_rank
        rows, columns = layer.weight.shape  # type: ignore[union-attr]
        entries = layer_entries(config.weights, part, columns, rows, rank)  # type: ignore[arg-type]
        parameters = list(layer.parameters())
        assert entries.stored == sum(p.numel() for p in parameters)
        assert entries.trained == sum(p.numel() for p in parameters if p.requires_grad)
        assert entries.multiply_adds == rows * columns
        if method in ("sr_ste", "s_ste", "transposable", "relora"):
            assert entries.deployed == int((layer.weight != 0).sum())  # type: ignore[arg-type]
        if entries.composition:
            assert rank is not None
            assert entries.composition == rank * rows * columns


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_oats_keeps_what_it_says(pattern: Any) -> None:
    weights = WeightsConfig(method="oats", oats_compression=0.4, oats_pattern=pattern)
    rank, row = oats_shape(weights, 64, 48)
    sparse, left, right = sparse_plus_low_rank(torch.randn(48, 64), rank=rank, row=row, pattern=pattern, iterations=2)
    deployed = layer_entries(weights, "ffn", 64, 48, None).deployed
    assert int((sparse != 0).sum()) + left.numel() + right.numel() == deployed
    kept = 0.6 if pattern == "unstructured" else 0.5 / 0.75
    assert 0.95 * kept < deployed / (48 * 64) <= kept


def _total(config: ModelConfig, which: str = "trained") -> float:
    """Parameters of a whole model in millions, by one field of ``LayerEntries``."""
    width, hidden = config.hidden_size, config.ffn_width
    layers = [
        *[("attention", width, width, config.attention_rank)] * 4,
        *[("ffn", width, hidden, config.ffn_rank)] * 2,
        ("ffn", hidden, width, config.ffn_rank),
    ]
    block = sum(getattr(layer_entries(config.weights, *layer), which) for layer in layers)  # type: ignore[arg-type]
    outside = 2 * config.vocab_size * width + (2 * config.num_layers + 1) * width
    return (config.num_layers * block + outside) / 1e6


# hidden, intermediate, layers, heads, rank of the sizes in the tables of the GaLore family
SHAPES = {
    "60M": (512, 1376, 8, 8, 128),
    "130M": (768, 2048, 12, 12, 256),
    "350M": (1024, 2736, 24, 16, 256),
    "1B": (2048, 5461, 24, 32, 512),
}


def _config(size: str, method: Any, rank: int | None = None, **weights: Any) -> ModelConfig:
    hidden, intermediate, layers, heads, own_rank = SHAPES[size]
    return ModelConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        attention_rank=rank or own_rank,
        ffn_rank=rank or own_rank,
        weights=WeightsConfig(method=method, **weights),
    )


@pytest.mark.parametrize(
    ("size", "sltrain", "cola", "full"),
    # arXiv 2406.02214, table 2; arXiv 2502.10940, table 5 (SLTrain's low rank has the same counts)
    [("60M", 44, 43, 58), ("130M", 97, 94, 134), ("350M", 194, 185, 368), ("1B", 646, 609, 1339)],
)
def test_counts_are_those_of_sltrains_and_colas_tables(size: str, sltrain: int, cola: int, full: int) -> None:
    assert round(_total(_config(size, "sltrain"))) == sltrain
    assert round(_total(_config(size, "plain"))) == cola
    assert round(_total(_config(size, "relora"), "deployed")) == full


@pytest.mark.parametrize(
    ("size", "trained"),
    # arXiv 2307.05695, tables of results: what ReLoRA trains, at rank 128
    [("60M", 43), ("130M", 72), ("350M", 125), ("1B", 250)],
)
def test_relora_trains_what_its_table_says(size: str, trained: int) -> None:
    assert _total(_config(size, "relora", rank=128)) == pytest.approx(trained, rel=0.01)
