"""SLTrain and ReLoRA: what the matrix is, what learns, and what a merge leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.weights.attach import weight_rules
from elas_lightning.nn.weights.low_rank import Restarted, SparsePlusLowRank
from elas_lightning.nn.weights.rule import Place
from elas_lightning.nn.weights_config import WeightsConfig


def test_sltrain_is_a_product_plus_entries_on_a_fixed_support() -> None:
    config = WeightsConfig(method="sltrain", sltrain_density=0.1, alpha=6)
    rule = SparsePlusLowRank(torch.randn(8, 20, dtype=torch.float64), 3, config)
    value_N = rule.right_inverse(torch.empty(8, 20, dtype=torch.float64))
    assert value_N.shape == (16,)
    assert value_N.abs().max() <= 20**-0.5
    assert rule.index.unique().numel() == 16
    nn.init.normal_(rule.B)
    value_N = value_N.requires_grad_()
    weight = rule(value_N)
    dense = torch.zeros(160, dtype=torch.float64)
    dense[rule.index] = value_N.detach()
    expected = 2 * rule.B @ rule.A + dense.view(8, 20)
    torch.testing.assert_close(weight, expected, rtol=1e-14, atol=1e-14)
    gradient = torch.randn_like(weight)
    weight.backward(gradient)
    assert torch.equal(value_N.grad, gradient.flatten()[rule.index])
    torch.testing.assert_close(rule.A.grad, 2 * rule.B.T @ gradient)


def test_supports_differ_between_layers_and_seeds(with_method: Callable[..., ModelConfig]) -> None:
    def supports(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        rules = [rule for rule, _ in weight_rules(Llama(with_method("sltrain")))]
        return [rule.index for rule in rules if isinstance(rule, SparsePlusLowRank)]

    first, again, other = supports(1), supports(1), supports(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def _place(step: int) -> Place:
    return Place(step, 100, restart_every=10)


@pytest.fixture
def relora() -> tuple[Restarted, nn.Parameter]:
    parameter = nn.Parameter(torch.randn(8, 12, dtype=torch.float64))
    rule = Restarted(parameter.detach(), 3, WeightsConfig(method="relora", relora_full_rank_cycles=2))
    rule.enter(parameter, _place(0))
    return rule, parameter


def _learning(rule: Restarted, parameter: nn.Parameter) -> tuple[bool, bool, bool]:
    return parameter.requires_grad, rule.A.requires_grad, rule.B.requires_grad


def test_relora_learns_at_full_rank_first(relora: tuple[Restarted, nn.Parameter]) -> None:
    rule, parameter = relora
    assert _learning(rule, parameter) == (True, False, False)
    for step in range(1, 20):
        assert list(rule.after_step(parameter, _place(step))) == []
    (stale,) = rule.after_step(parameter, _place(20))
    assert stale is parameter
    assert _learning(rule, parameter) == (False, True, True)
    rule.enter(parameter, _place(19))
    assert _learning(rule, parameter) == (True, False, False)
    rule.enter(parameter, _place(57))
    assert _learning(rule, parameter) == (False, True, True)


def test_a_merge_changes_no_output(relora: tuple[Restarted, nn.Parameter]) -> None:
    rule, parameter = relora
    nn.init.normal_(rule.B)
    before, factor = rule(parameter).detach().clone(), rule.A.detach().clone()
    assert list(rule.after_step(parameter, _place(29))) == []
    stale = rule.after_step(parameter, _place(30))
    assert [id(p) for p in stale] == [id(rule.A), id(rule.B)]
    torch.testing.assert_close(rule(parameter), before, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(parameter, before, rtol=1e-14, atol=1e-14)
    assert not rule.B.any()
    assert not torch.equal(rule.A, factor)
    assert rule.A.abs().max() <= 12**-0.5


def test_the_new_start_depends_on_the_layer_and_the_step_alone(relora: tuple[Restarted, nn.Parameter]) -> None:
    rule, parameter = relora
    starts = []
    for step in (30, 40, 30):
        torch.rand(step)  # whatever else draws numbers
        rule.after_step(parameter, _place(step))
        starts.append(rule.A.detach().clone())
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[1])


def test_without_a_warm_start_the_matrix_never_learns() -> None:
    parameter = nn.Parameter(torch.randn(8, 12))
    rule = Restarted(parameter.detach(), 3, WeightsConfig(method="relora", relora_full_rank_cycles=0))
    rule.enter(parameter, _place(0))
    assert _learning(rule, parameter) == (False, True, True)
    assert list(rule.after_step(parameter, _place(1))) == []
    assert len(list(rule.after_step(parameter, _place(10)))) == 2
