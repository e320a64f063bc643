"""Rules on a whole model: where they sit, what forward makes of them, what a saved model holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.weights.attach import weight_rules
from elas_lightning.nn.weights.rule import Place

METHODS = ["sltrain", "relora", "sr_ste", "s_ste", "transposable", "asp"]
Make = Callable[..., ModelConfig]


def _plain_twin(model: Llama) -> Llama:
    """The model that has the rules' weights as its own."""
    config = model.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "ffn")
    twin = Llama(
        ModelConfig(
            **{key: getattr(config, key) for key in same},
            attention_rank=config.layer_rank("attention"),
            ffn_rank=config.layer_rank("ffn"),
        )
    )
    state = {name: value for name, value in model.state_dict().items() if ".parametrizations." not in name}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            state |= {f"{name}.{tensor}": getattr(module, tensor).detach() for tensor in module.parametrizations}
    twin.load_state_dict(state)
    return twin


def _stir(model: Llama) -> None:
    """Move every parameter, so that no factor is zero, and let the rules act."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for rule, parameter in weight_rules(model):
        rule.after_step(parameter, Place(30, 60, restart_every=20))


@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_computes_with_the_weights_that_its_layers_show(
    with_method: Make, input_ids: torch.Tensor, method: str, ffn: str
) -> None:
    model = Llama(with_method(method, {"ffn": ffn}))
    _stir(model)
    assert torch.equal(model(input_ids), _plain_twin(model)(input_ids))


@pytest.mark.parametrize("method", ["sr_ste", "transposable", "s_ste"])
def test_low_rank_layers_are_sparse_in_both_factors(with_method: Make, input_ids: torch.Tensor, method: str) -> None:
    model = Llama(with_method(method, {"attention_rank": 8, "ffn_rank": 12, "ffn": "relu2"}))
    _stir(model)
    assert torch.equal(model(input_ids), _plain_twin(model)(input_ids))
    up = model.layers[1].mlp.up_proj  # type: ignore[union-attr]
    for factor in (up.A, up.B):  # type: ignore[union-attr]
        assert ((factor.detach().reshape(-1, 4) != 0).sum(1) == 2).all()  # type: ignore[operator]


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_computes_the_same_without_being_built(
    with_method: Make, input_ids: torch.Tensor, method: str
) -> None:
    model = Llama(with_method(method))
    _stir(model)
    with torch.device("meta"):
        again = Llama(model.config)
    again.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(again.eval()(input_ids), model(input_ids))


def test_the_ffn_alone_can_be_sparse(with_method: Make) -> None:
    model = Llama(with_method("sr_ste", layers="ffn"))
    reached = {name for name, module in model.named_modules() if parametrize.is_parametrized(module)}
    assert reached == {f"layers.{i}.mlp.{m}_proj" for i in (0, 1) for m in ("gate", "up", "down")}
    assert not parametrize.is_parametrized(model.lm_head)


def test_plain_and_oats_have_no_rules(with_method: Make) -> None:
    assert not list(weight_rules(Llama(with_method("oats"))))
    assert not list(weight_rules(Llama(with_method("plain"))))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_what_learns(with_method: Make, input_ids: torch.Tensor, method: str) -> None:
    model = Llama(with_method(method))
    for rule, parameter in weight_rules(model):
        rule.enter(parameter, Place(0, 60, restart_every=20))
    F.cross_entropy(model(input_ids).flatten(0, 1), input_ids.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


# inductor's decompositions import what torch itself has deprecated
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize(
    "method", ["relora", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "relora")]
)
def test_one_graph_under_the_compiler(with_method: Make, input_ids: torch.Tensor, method: str) -> None:
    def loss_of(model: nn.Module, ids: torch.Tensor) -> Any:
        return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    def gradients(run: Callable[..., Any], model: Llama) -> list[torch.Tensor]:
        model.zero_grad()
        run(model, input_ids).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    torch.compiler.reset()
    model = Llama(with_method(method, {"num_layers": 1, "checkpointing": "block"}))
    # traced and partitioned like inductor's graphs, without its compilation
    compiled = torch.compile(loss_of, backend="aot_eager_decomp_partition", fullgraph=True)
    for _ in range(2):  # a rule that changes a mask or what learns is seen
        for one, other in zip(gradients(loss_of, model), gradients(compiled, model), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        _stir(model)
