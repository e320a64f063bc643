"""Telemetry against the same figures computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elas_lightning.nn import Llama, SparsityConfig
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.telemetry import layer_statistics, sparsity_statistics
from elas_lightning.nn.telemetry_gradients import gradient_statistics
from elas_lightning.nn.telemetry_spectrum import effective_rank, weight_ranks, weight_singular_values
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.ops import backend as backends
from elas_lightning.ops import sparsify_24
from elas_lightning.ops.patterns import METHODS, PATTERNS, STOCHASTIC
from elas_lightning.training.recorder import TELEMETRY_FIELDS


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_choice_is_that_of_the_configured_step(elas, input_ids, pattern: Any, method: Any) -> None:
    """Captured from a model in evaluation, at the site itself; the hidden site of layer 0 is not even placed."""
    sites = ("ffn_hidden", "attention_input")
    config = elas(sparsity=SparsityConfig(sites, layers=(1,), pattern=pattern, method=method))
    model = Llama(config).eval()
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def capture(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        seen[module.site] = inputs[0].detach().double(), output.detach()

    block = model.layers[1]
    for module in (block.self_attn.input_site, block.mlp.hidden_site):
        module.register_forward_hook(capture)
    model(input_ids)
    rows = sparsity_statistics(model, input_ids)
    assert [(r["layer"], r["site"]) for r in rows] == [(0, "ffn_hidden"), *((1, s) for s in sorted(sites))]
    for site, (x, kept) in seen.items():
        dropped = (x != 0) & (kept == 0)
        assert row(rows, 1, site) == {
            "natural_zeros": pytest.approx((x == 0).double().mean().item()),
            "dropped_energy": pytest.approx((x[dropped].square().sum() / x.square().sum()).item(), rel=1e-5),
            "dropped_nonzeros": pytest.approx((dropped.sum() / (x != 0).sum()).item()),
        }
    assert {"attention_input"} <= set(seen)
    assert (pattern, method) == ("2:4", "magnitude") or "ffn_hidden" in seen


@pytest.mark.parametrize("method", STOCHASTIC)
def test_chance_is_no_drift(elas, input_ids, method: Any) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",), method=method)))
    selections: dict[tuple[int, str], Tensor] = {}
    for step in range(2):
        model.set_noise(step)
        rows = sparsity_statistics(model.eval(), input_ids, selections)
    assert [r["mask_drift"] for r in rows] == [0.0, 0.0]


def test_drift_is_the_share_of_the_last_choice_that_is_given_up(elas, input_ids) -> None:
    model = Llama(elas())
    selections: dict[tuple[int, str], Tensor] = {}

    def look() -> tuple[float | None, Tensor]:
        (x,) = inputs_of(model, ["mlp"], input_ids)
        drift = sparsity_statistics(model, input_ids, selections)[0]["mask_drift"]
        return drift, sparsify_24(model.layers[0].mlp.hidden(x)) != 0

    first, before = look()
    unchanged, _ = look()
    with torch.no_grad():
        model.layers[0].mlp.up_proj.B.add_(0.02 * torch.randn(80, 12))
    moved, after = look()
    assert first is None
    assert unchanged == 0
    assert moved == pytest.approx((before & ~after).sum().item() / before.sum().item())
    assert 0.01 < moved < 0.9


def test_drift_and_spectrum_look_at_the_first_tokens_alone(elas) -> None:
    model, input_ids = Llama(elas()), torch.randint(97, (3, 100))
    selections: dict[tuple[int, str], Tensor] = {}
    rows = sparsity_statistics(model, input_ids, selections)
    assert {kept.shape for kept in selections.values()} == {(256, 80)}
    (x,) = inputs_of(model, ["mlp"], input_ids)
    spectrum = torch.linalg.svdvals(model.layers[0].mlp.hidden(x).flatten(0, 1)[:256])
    assert rows[0]["effective_rank_hidden"] == pytest.approx(effective_rank(spectrum), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "rank"), [([1.0] * 5, 5.0), ([3.0, 0.0, 0.0], 1.0), ([0.0, 0.0], 0.0), ([0.75, 0.25], 1.7547654)]
)
def test_effective_rank_of_known_spectra(values: list[float], rank: float) -> None:
    assert effective_rank(torch.tensor(values)) == pytest.approx(rank)


@pytest.mark.parametrize(("d_in", "d_out", "rank"), [(40, 24, 8), (24, 40, 24), (7, 9, 1)])
def test_singular_values_of_a_product_without_forming_it(d_in: int, d_out: int, rank: int) -> None:
    linear = LowRankLinear(d_in, d_out, rank, silu=False, site=None)
    with torch.no_grad():
        linear.A.normal_()
        linear.B.normal_()
    dense = torch.linalg.svdvals(linear.B.detach().double() @ linear.A.detach().double())[:rank]
    torch.testing.assert_close(weight_singular_values(linear).double(), dense, rtol=1e-4, atol=1e-4)


def test_weight_ranks_of_full_and_low_rank(swiglu, elas) -> None:
    full, low = weight_ranks(Llama(swiglu())), weight_ranks(Llama(elas()))
    assert [row["layer"] for row in full] == [0, 1]
    for name in ("effective_rank_up", "effective_rank_down"):
        assert 12 < full[0][name] <= 32
        assert 1 < low[0][name] <= 12


def up_gradient(model: Llama, input_ids: Tensor, labels: Tensor, layer: int) -> Tensor:
    """By ordinary backward through the whole logits."""
    model.zero_grad()
    logits = model(input_ids)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    mlp = model.layers[layer].mlp
    grads = [p.grad for name, p in mlp.named_parameters() if not name.startswith("down_proj")]
    found = torch.cat([g.flatten() for g in grads if g is not None]).double()
    model.zero_grad()
    return found


@pytest.mark.parametrize("own", ["ste", "masked"])
@pytest.mark.parametrize("changes", [{}, {"ffn": "swiglu"}, {"ffn_storage": "recompute"}])
def test_gradients_are_those_of_models_built_with_each(elas, input_ids, own: Any, changes: Any) -> None:
    config = elas(**changes, sparsity=SparsityConfig(("ffn_hidden", "ffn_input"), gradient=own))
    model = Llama(config)
    labels = torch.randint(97, input_ids.shape)
    labels[0, :5] = -100
    rows = gradient_statistics(model, input_ids, labels)
    grads = {}
    for name in ("ste", "masked"):
        sparsity = SparsityConfig(("ffn_hidden", "ffn_input"), gradient=name)
        twin = Llama(replace(config, sparsity=sparsity))
        twin.load_state_dict(model.state_dict())
        grads[name] = [up_gradient(twin, input_ids, labels, layer) for layer in (0, 1)]
    for row, ste, masked in zip(rows, grads["ste"], grads["masked"], strict=True):
        assert row["gradient_norm_ste"] == pytest.approx(ste.norm().item(), rel=1e-4)
        assert row["gradient_norm_masked"] == pytest.approx(masked.norm().item(), rel=1e-4)
        cosine = torch.nn.functional.cosine_similarity(ste, masked, dim=0).item()
        assert row["gradient_cosine"] == pytest.approx(cosine, rel=1e-4)
        assert row["gradient_bias"] == pytest.approx(((ste - masked).norm() / masked.norm()).item(), rel=1e-3)
        assert 0.3 < row["gradient_cosine"] < 1 - 1e-6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_layer_statistics_leave_no_trace_in_any_mode(elas, mode: Any) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",))))
    kept = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = kept.clone()
    state = torch.get_rng_state()
    with mode():
        input_ids = torch.arange(24).view(2, 12)
        rows = layer_statistics(model, input_ids, input_ids, {})
    assert set(rows[0]) == set(TELEMETRY_FIELDS) - {"step", "busiest_expert"}
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.lm_head.weight.grad, kept)
    assert all(p.grad is None for p in model.parameters() if p is not model.lm_head.weight)
    assert model.layers[0].mlp.hidden_site.gradient == "ste"


def test_a_dense_phase_has_one_gradient_and_so_nothing_to_compare(elas, input_ids) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",))))
    model.set_sparsity(False)
    assert gradient_statistics(model, input_ids, input_ids) == []
    assert "gradient_cosine" not in layer_statistics(model, input_ids, input_ids, {})[0]


@pytest.mark.parametrize("method", ["sr_ste", "sltrain"])
def test_the_rank_is_that_of_the_weight_in_use(swiglu, method: Any) -> None:
    ranks = {"attention_rank": 8, "ffn_rank": 12} if method == "sltrain" else {}
    model = Llama(swiglu(**ranks, weights=WeightsConfig(method=method)))
    used = model.layers[0].mlp.up_proj.weight.detach()
    assert (used == 0).sum() > 0
    expected = effective_rank(torch.linalg.svdvals(used.double()))
    assert weight_ranks(model)[0]["effective_rank_up"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backend", ["hopper", "cusparselt"])
def test_looks_in_float32_at_what_16_bit_kernels_train(elas, input_ids, monkeypatch, backend: Any) -> None:
    monkeypatch.setattr(backends, "_runs", lambda name, device: "named")
    changes = {"ffn_storage": "recompute", "sparsity": SparsityConfig(("ffn_hidden",))}
    plain, model = Llama(elas(**changes)), Llama(elas(backend=backend, **changes))
    model.load_state_dict(plain.state_dict())
    expected = layer_statistics(plain, input_ids, input_ids, {})
    assert layer_statistics(model, input_ids, input_ids, {}) == expected
    assert [block.mlp.config.backend for block in model.layers] == [backend] * 2
