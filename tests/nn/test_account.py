"""The account against published sizes, real models and torch's own counter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from measure import accounted_flops, step_flops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elas_lightning.nn import Llama, ModelConfig, SparsityConfig
from elas_lightning.nn.account import count_parameters, flops_by_part, flops_per_token, parameter_account
from elas_lightning.nn.loss import _sum_nll
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.ops import storage
from elas_lightning.ops.patterns import METHODS, PATTERNS

SITES = ("ffn_hidden", "ffn_input", "ffn_bottleneck", "attention_input", "attention_output")
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
    assert count_parameters(config(size, **ranks, ffn="relu2"))["total"] / 1e6 == pytest.approx(ungated, abs=1e-3)


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
        parts = {"embed": "embedding", "self_attn": "attention", "mlp": "ffn", "norm": "norms", "lm_head": "head"}
        counted[next(part for key, part in parts.items() if key in name.replace("attention_layernorm", "norm"))] += (
            parameter.numel()
        )
    assert count_parameters(described) == {**counted, "total": sum(counted.values())}


@pytest.mark.parametrize(("batch", "time"), [(2, 16), (1, 300), (5, 3)])
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
def test_flops_are_those_that_torch_counts(swiglu, changes: dict[str, Any], batch: int, time: int) -> None:
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
    by_part = flops_by_part(described, time)
    for direction, counter in (("forward", forward), ("backward", backward)):
        assert by_part[direction]["total"] * batch * time == counter.get_total_flops()
    parts = {"attention", "attention_scores", "ffn", "head"}
    assert sum(account[part] for part in parts) == account["forward"]


def test_only_attention_scores_grow_with_the_sequence() -> None:
    short, long = (flops_per_token(config("60m"), time) for time in (256, 512))
    assert long["attention_scores"] == 2 * short["attention_scores"]
    assert long["forward"] - short["forward"] == short["attention_scores"]


def test_the_fused_head_makes_its_backward_products_in_forward(swiglu) -> None:
    hidden, weight = torch.randn(24, 32), torch.randn(97, 32)
    with FlopCounterMode(display=False) as counter:
        # in two dtypes, where the sum over chunks is a product and a sum: torch does not count addmm_
        _sum_nll(hidden, weight, torch.randint(97, (24,)), torch.bfloat16, True)
    account = flops_by_part(swiglu(), 12)
    assert counter.get_total_flops() == 24 * (account["forward"]["head"] + account["backward"]["head"])


@pytest.mark.parametrize(("kept", "again"), [("recompute", 1), ("packed", 1), ("packed-masked", 0)])
def test_stored_ffns_compute_the_up_product_again(elas, kept: str, again: int) -> None:
    name, _, masked = kept.partition("-")
    sparsity = SparsityConfig(("ffn_hidden",), gradient="masked" if masked else "ste")
    described = elas(ffn_storage=name, sparsity=sparsity)
    z, up, down = torch.randn(24, 12), torch.randn(80, 12), torch.randn(80, 12)
    options = (True, bool(masked), name == "packed", "reference")
    _, values, meta = storage.stored_ffn(z, up, down, *options)
    with FlopCounterMode(display=False) as counter:
        storage.ffn_gradients(z, up, down, values, meta, torch.randn(24, 12), *options)
    recomputed = flops_by_part(described, 12)["recomputed"]["total"]
    assert recomputed == again * described.num_layers * 2 * 80 * 12
    assert described.num_layers * counter.get_total_flops() == 24 * recomputed + 4 * 2 * 24 * 2 * 80 * 12


@pytest.mark.parametrize(
    ("checkpointing", "changes"),
    [
        ("block", {"ffn": "swiglu"}),
        ("block", {"ffn": "swiglu", "ffn_rank": 12}),
        ("block", {"ffn": "relu2", "attention_rank": 8}),
        ("bottleneck", {"ffn_rank": 12}),
        ("bottleneck", {"attention_rank": 8, "ffn_rank": 12, "bottleneck_activation": "silu"}),
        ("bottleneck", {"attention_rank": 8, "ffn_rank": 12, "ffn": "relu2"}),
    ],
)
def test_checkpointing_computes_again_what_torch_counts(swiglu, checkpointing: Any, changes: dict[str, Any]) -> None:
    described = swiglu(**changes, checkpointing=checkpointing)
    model, input_ids = Llama(described), torch.randint(97, (2, 16))
    with sdpa_kernel(SDPBackend.MATH):
        loss = model(input_ids).sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
    account = flops_by_part(described, 16)
    assert account["backward"] == flops_by_part(described, 16, "none")["backward"]
    counted = account["backward"]["total"] + account["recomputed"]["total"]
    assert 32 * counted == counter.get_total_flops()


class TwoOfFour(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the FLOPs of products with an operand that is 2:4, and sparse at all, along the summed axis."""

    flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.mm.default:
            a, b = args
            if self.pattern(a) or self.pattern(b.t()):
                self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return function(*args, **(kwargs or {}))

    @staticmethod
    def pattern(x: torch.Tensor) -> bool:
        return x.shape[1] % 4 == 0 and bool(((x.unflatten(1, (-1, 4)) != 0).sum(-1) <= 2).all())


def _check_flops_with_24(config: ModelConfig, any_24: bool = True) -> None:
    model, input_ids = Llama(config), torch.randint(97, (4, 30))
    account = flops_by_part(config, 30)
    with TwoOfFour() as forward:
        loss = model(input_ids).square().sum()
    with TwoOfFour() as backward:
        loss.backward()
    assert (forward.flops > 0) == any_24
    for direction, found in (("forward", forward), ("backward", backward)):
        saved = account[direction]["total"] - account[direction]["flops_with_24"]
        assert 120 * saved == found.flops / 2


@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("placement", SITES)
@pytest.mark.parametrize(
    "changes",
    [
        {"ffn_rank": 12, "attention_rank": 8},
        {"ffn_rank": 12, "ffn": "relu2"},
        {"ffn_rank": 12, "ffn": "gelu", "bottleneck_activation": "silu"},
        {"attention_rank": 8},
        {"ffn": "relu2"},
    ],
)
def test_flops_with_24_are_those_of_products_with_a_24_operand(
    swiglu, changes: dict[str, Any], placement: Any, gradient: Any
) -> None:
    """Found in the operands of a real step, whatever the account thinks of them."""
    if placement == "ffn_bottleneck" and "ffn_rank" not in changes:
        changes = {**changes, "ffn_rank": 8}
    sparsity = SparsityConfig((placement,), layers=(1,), gradient=gradient)
    described = swiglu(**changes, sparsity=sparsity)
    _check_flops_with_24(described)
    total = flops_per_token(described, 30)
    assert total["flops_with_24"] < total["total"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_flops_with_24_count_the_patterns_that_24_hardware_multiplies(swiglu, method: Any, pattern: Any) -> None:
    sparsity = SparsityConfig(("ffn_hidden",), gradient="masked", pattern=pattern, method=method)
    described = swiglu(ffn="gelu", num_layers=1, ffn_rank=12, sparsity=sparsity)
    _check_flops_with_24(described, any_24=pattern in ("2:4", "1:4", "2:8"))


@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("changes", [{"ffn": "relu2"}, {"ffn_rank": 12}, {"ffn": "gelu", "ffn_rank": 12}])
def test_feature_wise_weight_gradients_are_24_along_tokens(swiglu, changes: dict[str, Any], gradient: Any) -> None:
    """Tokens in the order in which they come, and no dense features, so that the pattern is there to be seen."""
    sparsity = SparsityConfig(
        ("ffn_hidden",),
        layers=(1,),
        gradient=gradient,
        pattern="3:4",
        backward="feature_wise",
        backward_dense_share=0.0,
        backward_permutation=False,
    )
    described = swiglu(**changes, sparsity=sparsity)
    model, input_ids = Llama(described), torch.randint(97, (4, 30))
    loss = model(input_ids).square().sum()
    with TwoOfFour() as backward:
        loss.backward()

    def saved(config: ModelConfig) -> int:
        account = flops_by_part(config, 30)
        assert account["forward"]["total"] == account["forward"]["flops_with_24"]
        return account["backward"]["total"] - account["backward"]["flops_with_24"]

    assert 120 * saved(described) == backward.flops / 2 > 0
    # a tenth of the features, rounded up, stays dense
    some = replace(described, sparsity=replace(sparsity, backward_dense_share=0.1))
    width = described.ffn_width
    assert saved(some) * width == saved(described) * (width - (width + 9) // 10)


@pytest.mark.parametrize("checkpointing", ["none", "block", "bottleneck"])
@pytest.mark.parametrize("changes", [{"ffn": "relu2", "attention_rank": 8}, {"ffn_rank": 12}])
def test_feature_wise_backward_computes_products_twice(swiglu, changes: dict[str, Any], checkpointing: Any) -> None:
    sparsity = SparsityConfig(("ffn_hidden",), layers=(1,), backward="feature_wise")
    described = swiglu(**changes, checkpointing=checkpointing, sparsity=sparsity)
    assert 32 * accounted_flops(described, 16) == step_flops(Llama(described), torch.randint(97, (2, 16)))


@pytest.mark.parametrize(
    ("weights", "changes"),
    [
        ({"method": "sr_ste"}, {}),
        ({"method": "sr_ste", "layers": "ffn"}, {"ffn": "relu2"}),
        ({"method": "s_ste"}, {"attention_rank": 8, "ffn_rank": 12}),
        ({"method": "transposable"}, {}),
    ],
)
def test_flops_with_24_weights(swiglu, weights: dict[str, Any], changes: dict[str, Any]) -> None:
    _check_flops_with_24(swiglu(**changes, weights=WeightsConfig(**weights)))


@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_composed_matrices_cost_the_same_whatever_the_tokens(swiglu, checkpointing: Any) -> None:
    ranks = {"attention_rank": 8, "ffn_rank": 12}
    described = swiglu(**ranks, weights=WeightsConfig(method="relora"), checkpointing=checkpointing)
    model, full = Llama(described), flops_by_part(swiglu(), 16, checkpointing)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randint(97, (2, 16))).sum().backward()
    composed = flops_by_part(described, 16)["composed"]["total"]
    assert composed > 0
    tokens = 32 * sum(full[part]["total"] for part in ("forward", "backward", "recomputed"))
    assert counter.get_total_flops() == tokens + composed


def test_three_senses_of_parameters(swiglu) -> None:
    ranks = {"attention_rank": 8, "ffn_rank": 12}
    relora = parameter_account(swiglu(**ranks, weights=WeightsConfig(method="relora")))
    full, factors = count_parameters(swiglu()), count_parameters(swiglu(**ranks))
    assert relora["deployed"] == full
    assert relora["trained"] == factors
    for part in ("attention", "ffn"):
        assert relora["stored"][part] == full[part] + factors[part]
    sparse = parameter_account(swiglu(weights=WeightsConfig(method="sr_ste", layers="ffn")))
    assert sparse["stored"] == sparse["trained"] == full
    assert sparse["deployed"]["ffn"] == full["ffn"] // 2
    assert sparse["deployed"]["attention"] == full["attention"]
