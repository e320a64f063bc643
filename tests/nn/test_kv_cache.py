"""With what came before in a cache, the same logits as without one."""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest
import torch

from elas_lightning.nn import Llama, ModelConfig, SparsityConfig
from elas_lightning.nn.cache import Cache, LayerCache
from elas_lightning.nn.sparsity_config import Placement
from elas_lightning.ops.patterns import STOCHASTIC


def random_config(seed: int) -> ModelConfig:
    """Any mixture of what a model can be."""
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 3, 5])
    ranks = rng.choice([(None, None), (4, None), (None, 8), (6, 12)])
    sites = [site for site in get_args(Placement) if site != "ffn_bottleneck" or ranks[1]]
    return ModelConfig(
        vocab_size=rng.randint(10, 200),
        hidden_size=heads * rng.choice([4, 8, 12]),
        intermediate_size=rng.choice([16, 24, 44]),
        num_layers=rng.randint(1, 3),
        num_heads=heads,
        attention_rank=min(ranks[0], heads * 4) if ranks[0] else None,
        ffn_rank=min(ranks[1], heads * 4) if ranks[1] else None,
        ffn=rng.choice(["swiglu", "relu2", "relu", "gelu", "silu"]),
        rope_theta=rng.choice([100.0, 10000.0]),
        sparsity=SparsityConfig(tuple(rng.sample(sites, rng.randint(0, len(sites))))),
    )


def wide_weights(model: Llama) -> Llama:
    """Weights so large that a wrong position or mask shows in the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and not name.endswith((".A", ".B")):
                parameter.mul_(8.0)
    return model.eval()


@pytest.mark.parametrize("seed", range(16))
@torch.no_grad()
def test_prompt_then_single_tokens(seed: int) -> None:
    model = wide_weights(Llama(random_config(seed)))
    rng = random.Random(seed)
    batch, time = rng.randint(1, 3), rng.randint(2, 24)
    prompt = rng.randint(1, time - 1)
    ids_BT = torch.randint(model.config.vocab_size, (batch, time))
    cache = Cache(model.config.num_layers, time)
    pieces = [model(ids_BT[:, :prompt], cache)]
    pieces += [model(ids_BT[:, t : t + 1], cache) for t in range(prompt, time)]
    expected = model(ids_BT)
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5)
    assert cache.length == time


@torch.no_grad()
def test_a_prompt_read_in_parts(elas) -> None:
    model = wide_weights(Llama(elas()))
    ids_BT = torch.randint(97, (2, 20))
    cache = Cache(2, 20)
    pieces = [model(part, cache) for part in ids_BT.split([7, 1, 9, 3], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backward", ["dense", "feature_wise"])
@pytest.mark.parametrize("method", STOCHASTIC)
@torch.no_grad()
def test_random_numbers_go_by_the_place_in_the_text(elas, method: Any, backward: Any) -> None:
    sites = tuple(site for site in get_args(Placement) if site != "ffn_bottleneck")
    model = wide_weights(Llama(elas(sparsity=SparsityConfig(sites, method=method, backward=backward))))
    ids_BT = torch.randint(97, (2, 20))
    expected = model(ids_BT)
    cache = Cache(2, 20)
    pieces = [model(part, cache) for part in ids_BT.split([7, 1, 1, 9, 2], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="holds 20 positions"):
        model(ids_BT, cache)
    torch.testing.assert_close(model(ids_BT), expected)


@torch.no_grad()
def test_bfloat16_under_autocast(elas) -> None:
    model = Llama(elas())
    ids_BT = torch.randint(97, (1, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = Cache(2, 9)
        model(ids_BT[:, :8], cache)
        last = model(ids_BT[:, 8:], cache)[:, -1]
        torch.testing.assert_close(last, model(ids_BT)[:, -1], rtol=0.05, atol=0.01)


def test_more_than_it_holds_is_refused() -> None:
    cache = LayerCache(4)
    cache.append(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))
    with pytest.raises(ValueError, match="holds 4 positions and would need 5"):
        cache.append(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8))


def test_a_limit_that_is_not_reached_costs_nothing() -> None:
    """Someone who wants all that there is until the end token gives a large number."""
    cache = LayerCache(10**15)
    k_BHTD = torch.randn(1, 2, 9, 8)
    for part in k_BHTD.split([4, 1, 1, 1, 1, 1], 2):
        keys, values = cache.append(part, -part)
    assert torch.equal(keys, k_BHTD)
    assert torch.equal(values, -k_BHTD)
