"""Telemetry against the same figures computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from elas_lightning.nn import Llama, SparsityConfig
from elas_lightning.nn.telemetry import sparsity_statistics
from elas_lightning.ops import sparsify_24


def by_hand(*features: Tensor) -> dict[str, Any]:
    """The three shares over all given features together."""
    x = torch.cat([f.detach().flatten().double() for f in features])
    kept = torch.cat([sparsify_24(f.detach()).flatten().double() for f in features])
    dropped = (x != 0) & (kept == 0)
    return {
        "natural_zeros": pytest.approx((x == 0).double().mean().item()),
        "dropped_energy": pytest.approx((x[dropped].square().sum() / x.square().sum()).item(), rel=1e-5),
        "dropped_nonzeros": pytest.approx((dropped.sum() / (x != 0).sum()).item()),
    }


def inputs_of(model: Llama, names: list[str], input_ids: Tensor) -> list[Tensor]:
    """What the named modules of layer 0 read in one forward pass."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.layers[0]
        .get_submodule(name)
        .register_forward_pre_hook(lambda _m, args, at=name: seen.__setitem__(at, args[0]))
        for name in names
    ]
    model(input_ids)
    for handle in handles:
        handle.remove()
    return [seen[name] for name in names]


def row(rows: list[dict[str, Any]], layer: int, site: str) -> dict[str, Any]:
    (found,) = (r for r in rows if (r["layer"], r["site"]) == (layer, site))
    return {key: found[key] for key in ("natural_zeros", "dropped_energy", "dropped_nonzeros")}


@pytest.mark.parametrize("active", [False, True])
def test_hidden_site_of_elas(elas, input_ids, active: bool) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",))))
    model.set_sparsity(active)
    rows = sparsity_statistics(model, input_ids)
    assert [(r["layer"], r["site"]) for r in rows] == [(0, "ffn_hidden"), (1, "ffn_hidden")]
    (x,) = inputs_of(model, ["mlp"], input_ids)
    expected = by_hand(model.layers[0].mlp.up_proj(x).relu() ** 2)
    assert row(rows, 0, "ffn_hidden") == expected
    assert 0.3 < rows[0]["natural_zeros"] < 0.7


def test_dense_models_report_what_24_would_drop(swiglu, input_ids) -> None:
    model = Llama(swiglu())
    (hidden,) = inputs_of(model, ["mlp.down_proj"], input_ids)
    assert row(sparsity_statistics(model, input_ids), 0, "ffn_hidden") == by_hand(hidden)


def test_an_incomplete_last_group_is_left_out(swiglu, input_ids) -> None:
    model = Llama(swiglu(intermediate_size=50))
    (hidden,) = inputs_of(model, ["mlp.down_proj"], input_ids)
    assert row(sparsity_statistics(model, input_ids), 0, "ffn_hidden") == by_hand(hidden[..., :48])


def test_other_sites_where_placed(elas, input_ids) -> None:
    placement = ("ffn_input", "ffn_bottleneck", "attention_input", "attention_output")
    model = Llama(elas(sparsity=SparsityConfig(placement, layers=(0,))))
    rows = sparsity_statistics(model, input_ids)
    sites = [(0, site) for site in sorted((*placement, "ffn_hidden"))]
    assert [(r["layer"], r["site"]) for r in rows] == [*sites, (1, "ffn_hidden")]
    for site, names in {
        "ffn_input": ["mlp.input_site"],
        "attention_input": ["self_attn.input_site"],
        "attention_output": ["self_attn.output_site"],
        # one row for the bottlenecks of both matrices, each counted once
        "ffn_bottleneck": ["mlp.up_proj.site", "mlp.down_proj.site"],
    }.items():
        assert row(rows, 0, site) == by_hand(*inputs_of(model, names, input_ids))


def test_leaves_no_trace(elas, input_ids) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden", "ffn_bottleneck"))))
    before = model(input_ids)
    sparsity_statistics(model, input_ids)
    assert torch.equal(model(input_ids), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_all_zero_features_are_shares_of_nothing(elas, input_ids) -> None:
    model = Llama(elas())
    with torch.no_grad():
        model.layers[0].mlp.up_proj.A.zero_()
    assert row(sparsity_statistics(model, input_ids), 0, "ffn_hidden") == {
        "natural_zeros": 1.0,
        "dropped_energy": 0.0,
        "dropped_nonzeros": 0.0,
    }
