"""Configurations derive what follows and refuse what cannot be built, in one line that names the field."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from elas_lightning.errors import UserError
from elas_lightning.nn import ModelConfig, SparsityConfig

LOW_RANK = ModelConfig(attention_rank=128, ffn_rank=128, ffn="relu2")


@pytest.mark.parametrize(
    ("ffn", "intermediate", "width"),
    [("swiglu", 1376, 1376), ("relu2", 1376, 2064), ("relu2", 2048, 3072), ("gelu", 2736, 4112), ("silu", 5461, 8192)],
)
def test_ffn_width(ffn: Any, intermediate: int, width: int) -> None:
    assert ModelConfig(ffn=ffn, intermediate_size=intermediate).ffn_width == width


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        ("all", 5, {0, 1, 2, 3, 4}),
        ("first_half", 5, {0, 1}),
        ("second_half", 5, {2, 3, 4}),
        ("first_half", 4, {0, 1}),
        ((3, 1), 4, {1, 3}),
    ],
)
def test_sparse_layers(layers: Any, count: int, expected: set[int]) -> None:
    config = ModelConfig(num_layers=count, sparsity=SparsityConfig(placement=("ffn_hidden",), layers=layers))
    assert config.sparse_layers == expected


def test_a_dense_model_has_no_sparse_layers() -> None:
    assert ModelConfig(sparsity=SparsityConfig(layers=(0, 99))).sparse_layers == frozenset()


def test_lists_become_tuples() -> None:
    sparsity = SparsityConfig(placement=["ffn_hidden"], layers=[0, 2])  # type: ignore[arg-type]
    assert sparsity == SparsityConfig(placement=("ffn_hidden",), layers=(0, 2))
    assert hash(ModelConfig(sparsity=sparsity)) == hash(ModelConfig(sparsity=replace(sparsity)))


def test_round_trip_through_plain_values() -> None:
    config = replace(LOW_RANK, sparsity=SparsityConfig(placement=("ffn_hidden",)))
    values = asdict(config)
    assert ModelConfig.from_mapping(values) == config


SPARSE = {"ffn_rank": 128, "ffn": "relu2"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 0}, r"model\.config\.vocab_size = 0 is not possible: give an integer of at least 1"),
        ({"num_layers": 2.0}, r"num_layers = 2\.0 .* integer"),
        ({"num_layers": True}, r"num_layers = True .* integer"),
        ({"hidden_size": "512"}, r"hidden_size = '512' .* integer"),
        ({"norm_eps": 0.0}, r"norm_eps = 0\.0 .* above 0"),
        ({"rope_theta": float("inf")}, r"rope_theta = inf .* finite"),
        ({"initializer_range": "x"}, r"initializer_range = 'x'"),
        ({"num_heads": 7}, r"num_heads = 7 .* divide hidden_size = 512"),
        ({"hidden_size": 24, "num_heads": 8}, r"num_heads = 8 .* = 3 must be even"),
        ({"ffn_rank": 513}, r"model\.config\.ffn_rank = 513 .* 1 to 512 .* null for full rank"),
        ({"ffn_rank": 65, "intermediate_size": 64}, r"ffn_rank = 65 .* 1 to 64"),
        ({"attention_rank": 1000}, r"attention_rank = 1000 .* 1 to 512"),
        ({"attention_rank": 0}, r"attention_rank = 0"),
        ({"attention_rank": -4}, r"attention_rank = -4"),
        ({"ffn_rank": 8.0}, r"ffn_rank = 8\.0"),
        ({"ffn": "geglu"}, r"ffn = 'geglu' .* one of swiglu, relu2, relu, gelu, silu"),
        ({"initialization": "zeros"}, r"initialization = 'zeros' .* xavier, cola, spectral, wide_lowrank"),
        ({"initialization": "spectral"}, r"initialization = 'spectral' .* set attention_rank or ffn_rank"),
        ({"backend": "triton"}, r"backend = 'triton' .* without a gate: choose auto or reference for swiglu"),
        ({"ffn_storage": "disk"}, r"ffn_storage = 'disk' .* dense, packed, recompute"),
        ({"ffn_storage": "recompute"}, r"ffn_storage = 'recompute' .* needs ffn relu2, not swiglu"),
        ({"ffn_storage": "packed", "ffn": "relu2"}, r"ffn_storage = 'packed' .* ffn_hidden in sparsity"),
        (
            {
                "ffn_storage": "packed",
                "ffn": "relu2",
                "sparsity": SparsityConfig(("ffn_hidden",)),
                "intermediate_size": 24,
                "ffn_width_multiple": 4,
            },
            r"ffn_storage = 'packed' .* divisible by 8, not 36: choose dense or recompute",
        ),
        ({"backend": "cuda"}, r"backend = 'cuda' .* auto, reference, triton, hopper, cusparselt"),
        ({"bottleneck_activation": "silu"}, r"bottleneck_activation = 'silu' .* set attention_rank or ffn_rank"),
        ({"bottleneck_activation": "gelu", "ffn_rank": 8}, r"bottleneck_activation = 'gelu' .* one of silu"),
        ({"sparsity": {"placement": []}}, r"model\.config\.sparsity = .* SparsityConfig"),
    ],
)
def test_model_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ModelConfig(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"placement": ("hidden",)}, r"model\.config\.sparsity\.placement = 'hidden' .* ffn_hidden, ffn_input"),
        ({"placement": "ffn_hidden"}, r"sparsity\.placement = 'ffn_hidden' .* give a list"),
        ({"placement": None}, r"sparsity\.placement = None .* give a list"),
        ({"placement": ["ffn_input", "ffn_input"]}, r"sparsity\.placement .* each placement once"),
        ({"layers": "last"}, r"sparsity\.layers = 'last' .* all, first_half, second_half"),
        ({"layers": [0, "1"]}, r"sparsity\.layers = \(0, '1'\) .* layer indices"),
        ({"layers": 3}, r"sparsity\.layers = 3"),
        ({"layers": [1, 1]}, r"sparsity\.layers = \[1, 1\] .* each layer once"),
        ({"pattern": "4:8"}, r"sparsity\.pattern = '4:8' .* 2:4, 1:4, 3:4, 2:8, unstructured"),
        ({"method": "topk"}, r"sparsity\.method = 'topk' .* magnitude, soft_threshold, mvue, random, first"),
        ({"backward": "sparse"}, r"sparsity\.backward = 'sparse' .* dense, feature_wise"),
        ({"backward_dense_share": 1.5}, r"sparsity\.backward_dense_share = 1\.5 .* 0 to 1"),
        ({"backward_dense_share": True}, r"sparsity\.backward_dense_share = True"),
        ({"backward_permutation": 1}, r"sparsity\.backward_permutation = 1 .* true or false"),
        (
            {"backward": "feature_wise", "placement": ["ffn_input"]},
            r"sparsity\.backward = 'feature_wise' .* put ffn_hidden in sparsity\.placement",
        ),
        ({"gradient": "exact"}, r"sparsity\.gradient = 'exact' .* ste, masked"),
        ({"dense_warmup_steps": -1}, r"sparsity\.dense_warmup_steps = -1 .* at least 0"),
    ],
)
def test_sparsity_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SparsityConfig(**values)


@pytest.mark.parametrize(
    ("model", "sparsity", "message"),
    [
        ({"num_layers": 2}, {"layers": (0, 2)}, r"sparsity\.layers = \[0, 2\] .* from 0 to 1"),
        ({"num_layers": 2}, {"layers": (-1,)}, r"sparsity\.layers = \[-1\] .* from 0 to 1"),
        ({"num_layers": 1}, {"layers": "first_half"}, r"sparsity\.layers = 'first_half' .* none of 1 layers"),
        ({}, {"layers": ()}, r"sparsity\.layers = \[\] .* none of 8 layers"),
        ({"intermediate_size": 5461}, {}, r"intermediate_size = 5461 .* ffn_hidden needs .* by 4, not 5461"),
        ({}, {"placement": ("ffn_bottleneck",)}, r"sparsity\.placement = \['ffn_bottleneck'\] .* set ffn_rank"),
        ({"ffn_rank": 10}, {"placement": ("ffn_bottleneck",)}, r"ffn_rank = 10 .* divisible by 4"),
        ({"hidden_size": 6, "num_heads": 1}, {"placement": ("ffn_input",)}, r"hidden_size = 6 .* ffn_input"),
        ({"hidden_size": 6, "num_heads": 1}, {"placement": ("attention_input",)}, r"hidden_size = 6"),
        ({"hidden_size": 6, "num_heads": 1}, {"placement": ("attention_output",)}, r"hidden_size = 6"),
        ({"intermediate_size": 1380}, {"pattern": "2:8"}, r"= 1380 .* 2:8 at ffn_hidden needs .* by 8, not"),
        ({"intermediate_size": 1377}, {"pattern": "unstructured"}, r"= 1377 .* divisible by 2, not 1377"),
        (
            {"ffn": "relu2", "backend": "triton"},
            {"pattern": "1:4"},
            r"backend = 'triton' .* 2:4 by magnitude .* not sparsity\.pattern 1:4: choose auto or reference",
        ),
        (
            {"ffn": "relu2", "ffn_storage": "packed"},
            {"method": "mvue"},
            r"ffn_storage = 'packed' .* not sparsity\.method mvue: choose dense",
        ),
        (
            {"ffn": "relu2", "ffn_storage": "recompute"},
            {"backward": "feature_wise"},
            r"ffn_storage = 'recompute' .* not sparsity\.backward feature_wise: choose dense",
        ),
    ],
)
def test_sparsity_that_the_model_cannot_carry(model: dict[str, Any], sparsity: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**model, sparsity=SparsityConfig(**{"placement": ("ffn_hidden",), **sparsity}))


def test_a_finer_multiple_comes_closer_to_one_and_a_half() -> None:
    assert ModelConfig(ffn="relu2", intermediate_size=50, ffn_width_multiple=4).ffn_width == 76
    assert ModelConfig(ffn="relu2", intermediate_size=50).ffn_width == 80
    assert ModelConfig(intermediate_size=50, ffn_width_multiple=4).ffn_width == 50
    with pytest.raises(UserError, match=r"ffn_width_multiple = 0 .* at least 1"):
        ModelConfig(ffn_width_multiple=0)


def test_what_the_kernels_do_not_know_matters_only_at_the_hidden_features() -> None:
    sparsity = SparsityConfig(placement=("ffn_input",), pattern="1:4")
    assert ModelConfig(ffn="relu2", ffn_storage="recompute", backend="triton", sparsity=sparsity).sparse_layers


def test_widths_matter_only_where_placed() -> None:
    assert ModelConfig(intermediate_size=5461).ffn_width == 5461
    sparsity = SparsityConfig(placement=("ffn_input",))
    assert ModelConfig(intermediate_size=5461, sparsity=sparsity).sparse_layers
