"""Every pattern, method, gradient and backward in whole models."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from elas_lightning.nn import Llama, ModelConfig, SparsityConfig
from elas_lightning.nn.ffn import ffn_path
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.nn.sparsity_config import Placement
from elas_lightning.ops import sparsify
from elas_lightning.ops.kernels import sparsify as kernels
from elas_lightning.ops.patterns import METHODS, PATTERNS, STOCHASTIC

EVERY_SITE = get_args(Placement)
FFNS = ["swiglu", "relu2", "relu", "gelu", "silu"]
WIDE = {"ffn_rank": 16, "attention_rank": 8}  # eight divides every site's width


def site(method: str = "random", **changes: Any) -> SparsitySite:
    config = SparsityConfig(("ffn_hidden",), method=method, **changes)  # type: ignore[arg-type]
    return SparsitySite("ffn_hidden", ModelConfig(ffn="relu2", sparsity=config), 0)


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("backward", ["dense", "feature_wise"])
def test_full_factorial_trains(swiglu, input_ids, ffn: Any, gradient: Any, backward: Any) -> None:
    for number, (pattern, method) in enumerate(itertools.product(PATTERNS, METHODS)):
        ranks = WIDE if number % 2 else {}
        placement = tuple(s for s in EVERY_SITE if ranks or s != "ffn_bottleneck")
        sparsity = SparsityConfig(placement, pattern=pattern, method=method, gradient=gradient, backward=backward)
        model = Llama(swiglu(ffn=ffn, num_layers=1, **ranks, sparsity=sparsity))
        model(input_ids).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (pattern, method, name)
            assert parameter.grad.isfinite().all(), (pattern, method, name)


@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
@pytest.mark.parametrize(("pattern", "method"), [("1:4", "magnitude"), ("2:4", "mvue"), ("2:8", "first")])
@pytest.mark.parametrize("backward", ["dense", "feature_wise"])
def test_ffn_spelled_out(elas, ffn: Any, pattern: Any, method: Any, backward: Any) -> None:
    sparsity = SparsityConfig(("ffn_hidden",), pattern=pattern, method=method, backward=backward)
    mlp = Llama(elas(ffn=ffn, sparsity=sparsity)).layers[0].mlp
    x = torch.randn(2, 5, 32)
    kept = sparsify(mlp.hidden(x), pattern=pattern, method=method, key=0)
    torch.testing.assert_close(mlp(x), mlp.down_proj(kept))


@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
def test_feature_wise_backward_changes_weight_gradients_of_the_ffn_alone(elas, input_ids, ffn: Any) -> None:
    grads, outputs = {}, {}
    for backward in ("dense", "feature_wise"):
        torch.manual_seed(0)
        sparsity = SparsityConfig(("ffn_hidden",), gradient="masked", backward=backward, backward_dense_share=0.0)
        model = Llama(elas(ffn=ffn, num_layers=1, sparsity=sparsity))
        outputs[backward] = model(input_ids)
        outputs[backward].square().sum().backward()
        grads[backward] = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(outputs["dense"], outputs["feature_wise"])
    changed = {
        name
        for name in grads["dense"]
        if not torch.allclose(grads["dense"][name], grads["feature_wise"][name], rtol=1e-4, atol=1e-6)
    }
    up = {"layers.0.mlp.up_proj.B"} | ({"layers.0.mlp.gate_proj.B"} if ffn == "swiglu" else set())
    assert changed == up | {"layers.0.mlp.down_proj.A"}


def test_feature_wise_backward_waits_for_the_dense_warm_up(elas, input_ids) -> None:
    grads = []
    for backward in ("dense", "feature_wise"):
        torch.manual_seed(0)
        model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",), backward=backward)))
        model.set_sparsity(False)
        model(input_ids).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("placement", EVERY_SITE)
def test_every_site_runs_the_kernel_that_is_named(
    swiglu, input_ids, placement: Any, gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter, on a processor, is what this runs")
    calls: list[Any] = []
    kernel = kernels.sparsify

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return kernel(*arguments)

    monkeypatch.setattr(kernels, "sparsify", counted)
    outcomes = []
    for backend in ("reference", "triton"):
        torch.manual_seed(0)
        sparsity = SparsityConfig((placement,), gradient=gradient)
        model = Llama(swiglu(ffn="relu2", num_layers=1, **WIDE, backend=backend, sparsity=sparsity))
        assert not calls
        out = model(input_ids)
        out.square().sum().backward()
        outcomes.append([out, *(parameter.grad for parameter in model.parameters())])
    assert len(calls) == (2 if placement == "ffn_bottleneck" else 1)
    torch.testing.assert_close(outcomes[1], outcomes[0])


@pytest.mark.parametrize(
    ("backend", "changes", "chosen"),
    [
        ("auto", {}, "reference"),
        ("reference", {}, "reference"),
        ("triton", {}, "triton"),
        ("cusparselt", {}, "triton"),
        ("cusparselt_compress", {}, "triton"),
        ("cusparselt", {"pattern": "1:4"}, "reference"),
        ("triton", {"method": "mvue"}, "reference"),
    ],
)
def test_what_a_site_runs_on(elas, backend: Any, changes: dict[str, Any], chosen: str) -> None:
    config = elas(backend=backend, sparsity=SparsityConfig(("attention_input",), **changes))
    assert SparsitySite("attention_input", config, 0).backend == chosen


# random numbers


@pytest.mark.parametrize("method", STOCHASTIC)
def test_draws_follow_the_counters(elas, input_ids, method: Any) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",), method=method)))

    def draw(*counters: int) -> torch.Tensor:
        model.set_noise(*counters)
        return model(input_ids)

    first = draw(0, 1)
    assert not torch.equal(first, draw(0, 2))
    assert not torch.equal(first, draw(1, 1))
    assert torch.equal(first, draw(0, 1))
    assert model.state_dict().keys() == Llama(elas()).state_dict().keys()


def test_sites_of_a_model_draw_apart(elas) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden", "ffn_input"), method="random")))
    model.set_noise(0, 1)
    sites = [m for m in model.modules() if isinstance(m, SparsitySite) and m.placed]
    assert len(sites) == 4
    assert len({int(s.key) for s in sites}) == 4
    assert len({s.number for s in sites}) == 4


@pytest.mark.parametrize("method", STOCHASTIC)
def test_evaluation_depends_on_the_sequence_alone(elas, input_ids, method: Any) -> None:
    model = Llama(elas(sparsity=SparsityConfig(EVERY_SITE[:3], method=method))).eval()
    model.set_noise(5)
    whole = model(input_ids)
    model.set_noise(6)
    torch.testing.assert_close(model(input_ids.flip(0)).flip(0), whole)
    torch.testing.assert_close(model(input_ids[1:]), whole[1:])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_evaluation_is_as_sparse_as_training(method: Any, training: bool) -> None:
    step = site(method).train(training)
    x = torch.randn(3, 4, 16)
    assert ((step(x).reshape(-1, 4) != 0).sum(-1) == 2).all()
    assert torch.equal(step(x), step(x))


def test_recomputation_under_checkpointing_draws_the_same(elas, input_ids) -> None:
    model = Llama(elas(sparsity=SparsityConfig(("ffn_hidden",), method="mvue", gradient="masked")))
    model(input_ids).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    checkpoint(model, input_ids, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


def test_a_model_from_the_meta_device_has_its_key(elas, input_ids) -> None:
    config = elas(sparsity=SparsityConfig(("ffn_hidden",), method="random"))
    model = Llama(config)
    with torch.device("meta"):
        bare = Llama(config)
    bare.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(bare.to("cpu")(input_ids), model(input_ids))


# compiled


# torch's own tracer makes the instance that torch warns of
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("method", "backward"), [*((method, "dense") for method in METHODS), ("mvue", "feature_wise")])
def test_a_training_step_is_one_graph(elas, input_ids, method: Any, backward: Any) -> None:
    torch.compiler.reset()
    sparsity = SparsityConfig(("ffn_hidden",), method=method, gradient="masked", backward=backward)
    model = Llama(elas(num_layers=1, sparsity=sparsity))

    def loss(input_ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids).square().mean()

    # the traced graph runs without a code generator, so no compiler is needed
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in range(2):
        model.set_noise(step)
        results = []
        for call in (loss, compiled):
            model.zero_grad()
            value = call(input_ids)
            value.backward()
            results.append([value, *(parameter.grad.clone() for parameter in model.parameters())])
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
    # a new key is no new graph
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"pattern": "1:4"}, "plain PyTorch, 1:4 by magnitude, everything kept"),
        ({"method": "mvue"}, "plain PyTorch, 2:4 by mvue, everything kept"),
        (
            {"backward": "feature_wise"},
            "plain PyTorch, 2:4 by magnitude, feature-wise backward by masks and dense products, everything kept",
        ),
        ({}, "plain PyTorch, pre-activation and hidden features kept"),
    ],
)
def test_names_the_path_of_its_ffn(elas, changes: dict[str, Any], path: str) -> None:
    config = elas(sparsity=SparsityConfig(("ffn_hidden",), **changes))
    assert ffn_path(config, torch.device("cpu")) == path
