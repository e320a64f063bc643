"""The decoder: sites, switches, gradients, causality."""

from __future__ import annotations

import logging
from typing import Any, get_args

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from elas_lightning.errors import UserError
from elas_lightning.nn import Llama, SparsityConfig
from elas_lightning.nn.ffn import ffn_path
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.nn.sparsity_config import Placement
from elas_lightning.ops import backend as backend_module
from elas_lightning.ops import sparsify_24

EVERY_SITE = get_args(Placement)
FFNS = ["swiglu", "relu2", "relu", "gelu", "silu"]


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("ranks", [{}, {"ffn_rank": 12}, {"attention_rank": 8, "ffn_rank": 12}])
@pytest.mark.parametrize("gradient", ["ste", "masked"])
def test_gradient_reaches_every_parameter(swiglu, input_ids, ffn: Any, ranks: Any, gradient: Any) -> None:
    placement = tuple(site for site in EVERY_SITE if ranks or site != "ffn_bottleneck")
    model = Llama(swiglu(ffn=ffn, **ranks, sparsity=SparsityConfig(placement, gradient=gradient)))
    logits = model(input_ids)
    assert logits.shape == (2, 12, 97)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
def test_the_future_does_not_change_the_past(elas, input_ids, ffn: Any) -> None:
    model = Llama(elas(ffn=ffn, sparsity=SparsityConfig(EVERY_SITE)))
    changed = input_ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 97
    before, after = model(input_ids), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-6, atol=1e-6)
    assert (before[:, 7:] - after[:, 7:]).abs().amin(0).amax(-1).min() > 1e-4


def test_warm_up_switch(elas, input_ids) -> None:
    sparse = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",))))
    dense = Llama(elas())
    dense.load_state_dict(sparse.state_dict())
    assert sparse.sparsity_active
    with_24 = sparse(input_ids)
    sparse.set_sparsity(False)
    assert not sparse.sparsity_active
    assert torch.equal(sparse(input_ids), dense(input_ids))
    assert not torch.equal(with_24, dense(input_ids))
    sparse.set_sparsity(True)
    assert torch.equal(sparse(input_ids), with_24)


def test_a_dense_model_stays_dense(elas) -> None:
    model = Llama(elas())
    model.set_sparsity(True)
    assert not model.sparsity_active


def test_the_switch_is_not_part_of_the_weights(elas) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",))))
    assert model.state_dict().keys() == Llama(elas()).state_dict().keys()


@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
@pytest.mark.parametrize("site", EVERY_SITE)
def test_each_placement_sits_in_the_chosen_layers_alone(elas, input_ids, ffn: Any, site: Any) -> None:
    sparse = Llama(elas(ffn=ffn, num_layers=3, sparsity=SparsityConfig((site,), layers=(1,))))
    dense = Llama(elas(ffn=ffn, num_layers=3))
    dense.load_state_dict(sparse.state_dict())
    outputs: dict[int, list[torch.Tensor]] = {}
    for model in (sparse, dense):
        for layer, block in enumerate(model.layers):
            block.register_forward_hook(lambda _m, _i, out, at=layer: outputs.setdefault(at, []).append(out))
        model(input_ids)
    assert torch.equal(*outputs[0])
    assert not torch.allclose(*outputs[1])
    placed = [module for module in sparse.modules() if isinstance(module, SparsitySite) and module.placed]
    assert {module.site for module in placed} == {site}
    assert {id(module) for module in placed} <= {id(module) for module in sparse.layers[1].modules()}


def run_mlp(model: Llama, x: torch.Tensor) -> torch.Tensor:
    return model.layers[0].mlp(x)


@pytest.mark.parametrize("bottleneck_activation", [None, "silu"])
def test_low_rank_ffn_spelled_out(elas, bottleneck_activation: Any) -> None:
    placement = ("ffn_input", "ffn_bottleneck", "ffn_hidden")
    config = elas(sparsity=SparsityConfig(placement), bottleneck_activation=bottleneck_activation)
    model = Llama(config)
    mlp = model.layers[0].mlp
    x = torch.randn(3, 5, 32)

    def linear(layer: LowRankLinear, x: torch.Tensor) -> torch.Tensor:
        z = x @ layer.A.T
        return sparsify_24(torch.nn.functional.silu(z) if bottleneck_activation else z) @ layer.B.T

    hidden = linear(mlp.up_proj, sparsify_24(x)).relu() ** 2
    torch.testing.assert_close(run_mlp(model, x), linear(mlp.down_proj, sparsify_24(hidden)))


def test_swiglu_spelled_out(swiglu) -> None:
    model = Llama(swiglu(sparsity=SparsityConfig(("ffn_input", "ffn_hidden"))))
    mlp = model.layers[0].mlp
    x = torch.randn(3, 5, 32)
    sparse = sparsify_24(x)
    hidden = torch.nn.functional.silu(sparse @ mlp.gate_proj.weight.T) * (sparse @ mlp.up_proj.weight.T)
    torch.testing.assert_close(run_mlp(model, x), sparsify_24(hidden) @ mlp.down_proj.weight.T)


def test_masked_and_straight_through_gradients_differ(elas, input_ids) -> None:
    gradients = {}
    state = Llama(elas()).state_dict()
    for kind in ("ste", "masked"):
        model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",), gradient=kind)))
        model.load_state_dict(state)
        model(input_ids).square().sum().backward()
        gradients[kind] = model.layers[0].mlp.up_proj.B.grad
    assert not torch.allclose(gradients["ste"], gradients["masked"])


def test_low_rank_layers_follow_their_own_rank(elas) -> None:
    block = Llama(elas(ffn_rank=None)).layers[0]
    assert isinstance(block.self_attn.q_proj, LowRankLinear)
    assert isinstance(block.mlp.up_proj, torch.nn.Linear)


@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
def test_autocast_to_bfloat16(elas, input_ids, ffn: Any) -> None:
    model = Llama(elas(ffn=ffn, sparsity=SparsityConfig(("ffn_hidden",))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids)
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    # here and there the precisions select different features, so only the whole is compared
    exact = model(input_ids)
    assert (logits - exact).norm() < 0.06 * exact.norm()


def test_bfloat16_weights(elas, input_ids) -> None:
    model = Llama(elas(sparsity=SparsityConfig(EVERY_SITE))).to(torch.bfloat16)
    assert model(input_ids).isfinite().all()


# torch's own tracer makes the instance that torch warns of
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
def test_traces_into_one_graph_on_both_sides_of_the_switch(elas, input_ids, ffn: Any) -> None:
    torch.compiler.reset()
    model = Llama(elas(ffn=ffn, num_layers=1, sparsity=SparsityConfig(EVERY_SITE)))
    # the traced graph runs without a code generator, so no compiler is needed
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for active in (False, True):
        model.set_sparsity(active)
        torch.testing.assert_close(compiled(input_ids), model(input_ids))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("storage", ["dense", "packed", "recompute"])
@pytest.mark.parametrize("active", [False, True])
def test_storage_and_backend_change_no_gradient(elas, input_ids, active: bool, storage: Any, backend: Any) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    grads = []
    for changes in ({}, {"ffn_storage": storage, "backend": backend}):
        torch.manual_seed(0)
        model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",)), **changes)).to(device)
        model.set_sparsity(active)
        model(input_ids.to(device)).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    # float32 sums in another order, through two layers
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("storage", ["packed", "recompute"])
def test_storage_traces_into_one_graph_and_under_checkpointing(elas, input_ids, storage: Any) -> None:
    torch.compiler.reset()
    model = Llama(elas(ffn_storage=storage, num_layers=1, sparsity=SparsityConfig(("ffn_hidden",))))
    expected = model(input_ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input_ids), expected)
    again = checkpoint(model, input_ids, use_reentrant=False)
    again.square().mean().backward()
    torch.testing.assert_close(again, expected)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, "plain PyTorch, pre-activation and hidden features kept"),
        ({"ffn_storage": "recompute"}, "plain PyTorch in chunks of 8192 tokens, nothing d_ff wide kept"),
        ({"backend": "triton"}, "library products around a kernel that squares and selects"),
    ],
)
def test_names_the_path_of_its_ffn(elas, changes: dict[str, Any], path: str) -> None:
    config = elas(sparsity=SparsityConfig(("ffn_hidden",)), **changes)
    assert ffn_path(config, torch.device("cpu")) == path


def test_says_which_backend_it_found(elas, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="elas_lightning.nn.llama"):
        Llama(elas())
    assert caplog.messages == [
        "backend reference (asked for: auto): no other backend has been measured to be faster on cpu"
    ]


def test_refuses_a_backend_that_cannot_run(elas) -> None:
    with pytest.raises(UserError, match="'cusparselt' cannot run here"):
        Llama(elas(backend="cusparselt"))


def test_a_place_without_memory_is_no_device_to_refuse(elas, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(backend_module, "_runs", lambda name, device: asked.append(device.type) or "named")
    with torch.device("meta"):
        Llama(elas(backend="triton"))
    assert asked == ["cuda" if torch.cuda.is_available() else "cpu"]


@pytest.mark.parametrize("storage", ["dense", "packed", "recompute"])
def test_shapes_can_be_had_without_numbers(elas, storage: Any) -> None:
    """On the meta device, where torch refuses to say whether autocast is on."""
    with torch.device("meta"):
        model = Llama(elas(ffn_storage=storage, sparsity=SparsityConfig(("ffn_hidden",))))
        input_ids = torch.zeros(2, 12, dtype=torch.int64)
    assert model(input_ids).shape == (2, 12, 97)
    model.loss(input_ids, input_ids)[0].backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
