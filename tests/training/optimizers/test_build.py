"""Which parameter goes where, and which pairs of model and optimizer are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.nn.config import SparsityConfig
from elas_lightning.nn.experts_config import ExpertsConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer
from elas_lightning.training.optimizers.config import OptimizerName

MakeModel = Callable[..., Llama]
NAMES: list[OptimizerName] = ["adamw", "loro", "muon"]


def _by_name(model: Llama, config: OptimizerConfig, field: str) -> dict[str, Any]:
    optimizer, _ = build_optimizer(model, config, total_steps=10)
    of = {id(p): group.get(field) for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert len(of) == len(list(model.parameters()))
    return {name: of[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(make_model: MakeModel, name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.1, warmup_steps=1)
    decay = _by_name(make_model(ffn_rank=None), config, "weight_decay")
    assert {name for name, value in decay.items() if value == 0.0} == {
        "embed_tokens.weight",
        "norm.weight",
        "layers.0.input_layernorm.weight",
        "layers.0.post_attention_layernorm.weight",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_matrices_of_the_blocks_learn_at_their_own_rate(make_model: MakeModel, name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, lr=0.4, block_lr_ratio=0.25, warmup_steps=0)
    rates = _by_name(make_model(ffn_rank=None), config, "initial_lr")
    slow = {name for name, rate in rates.items() if rate == 0.1}
    assert slow == {n for n in rates if n.startswith("layers.") and "layernorm" not in n}
    assert {rate for name, rate in rates.items() if name not in slow} == {0.4}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_sparse_entries_of_a_matrix_learn_and_decay_as_its_factors_do(
    make_model: MakeModel, name: OptimizerName
) -> None:
    config = OptimizerConfig(name=name, lr=0.4, block_lr_ratio=0.25, weight_decay=0.1, warmup_steps=0)
    model = make_model(weights=WeightsConfig(method="sltrain", sltrain_density=0.1))
    parts = [n for n in _by_name(model, config, "lr") if ".parametrizations." in n]
    assert {n.rsplit(".", 1)[1] for n in parts} == {"original", "A", "B"}
    for field, value in {"initial_lr": 0.1, "weight_decay": 0.1}.items():
        assert {_by_name(model, config, field)[n] for n in parts} == {value}
    # a vector has no singular values for Muon
    rules = _by_name(model, config, "rule")
    assert {rules[n] for n in parts if n.endswith("original")} == {None}
    assert {rules[n] for n in parts if not n.endswith("original")} == {"muon" if name == "muon" else None}


@pytest.mark.parametrize("name", NAMES)
def test_routers_go_by_adamw_at_the_nominal_rate_and_do_not_decay(make_model: MakeModel, name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, lr=0.4, block_lr_ratio=0.25, weight_decay=0.1, warmup_steps=0)
    model = make_model(experts=ExpertsConfig(3))
    expected = {"rule": None, "initial_lr": 0.4, "weight_decay": 0.0}
    for field, value in expected.items():
        assert _by_name(model, config, field)["layers.0.mlp.router.weight"] == value


def test_the_default_is_torchs_own_adamw(make_model: MakeModel) -> None:
    optimizer, _ = build_optimizer(make_model(), OptimizerConfig(warmup_steps=0), total_steps=10)
    assert type(optimizer) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("config", "rule", "ruled"),
    [
        ({"name": "loro"}, "factors", lambda n: ".self_attn." in n),
        ({"name": "muon"}, "muon", lambda n: ".self_attn." in n or ".mlp." in n),
    ],
)
def test_each_rule_gets_its_matrices(
    make_model: MakeModel, config: dict[str, Any], rule: str, ruled: Callable[[str], bool]
) -> None:
    rules = _by_name(make_model(ffn_rank=None), OptimizerConfig(**config, warmup_steps=0), "rule")
    assert {name for name, value in rules.items() if value == rule} == {n for n in rules if ruled(n)}


def test_galore_gets_the_matrices_of_the_blocks(make_model: MakeModel) -> None:
    config = OptimizerConfig(name="galore", galore_rank=4, warmup_steps=0)
    rules = _by_name(make_model(attention_rank=None, ffn_rank=None), config, "rule")
    ruled = {name for name, value in rules.items() if value == "galore"}
    assert ruled == {n for n in rules if ".self_attn." in n or ".mlp." in n}


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_follows_the_schedule(make_model: MakeModel, name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, lr=2.0, warmup_steps=2, min_lr_ratio=0.5)
    optimizer, schedule = build_optimizer(make_model(), config, total_steps=4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0])


def test_the_schedule_restarts_when_asked(make_model: MakeModel) -> None:
    config = OptimizerConfig(
        lr=1.0, schedule="cosine_restarts", restart_every=2, restart_warmup_steps=2, warmup_steps=0, min_lr_ratio=1.0
    )
    optimizer, schedule = build_optimizer(make_model(), config, total_steps=6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 1.0, 0.5, 1.0, 0.5, 1.0])


def test_a_closure_is_called_with_gradients_on(make_model: MakeModel) -> None:
    model = make_model()
    optimizer, _ = build_optimizer(model, OptimizerConfig(name="muon", warmup_steps=0), total_steps=10)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(torch.arange(8)[None]).square().mean()
        loss.backward()
        return loss

    before = model.lm_head.weight.clone()
    assert optimizer.step(closure).item() > 0
    assert not torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("name", ["loro", "muon", "galore"])
def test_a_gradient_scaler_changes_nothing_and_skips_what_is_not_finite(
    make_model: MakeModel, name: OptimizerName
) -> None:
    config = OptimizerConfig(
        name=name, warmup_steps=0, restart_every=2, restart_warmup_steps=0, galore_rank=2, loro_direction="gradient"
    )

    def train(scale: float, overflow: bool) -> dict[str, torch.Tensor]:
        model = make_model()
        optimizer, _ = build_optimizer(model, config, total_steps=10, fused=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(4 if overflow else 3):
            optimizer.zero_grad()
            scaler.scale(model(torch.arange(8)[None]).square().mean()).backward()
            if overflow and step == 0:
                assert model.lm_head.weight.grad is not None
                model.lm_head.weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update(scale)
        return model.state_dict()

    plain = train(1.0, overflow=False)
    for key, value in train(1024.0, overflow=True).items():
        assert torch.equal(value, plain[key]), key


def test_a_warmup_as_long_as_the_run_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(UserError, match="warmup_steps is 10 but the run has 10 steps"):
        build_optimizer(make_model(), OptimizerConfig(warmup_steps=10), total_steps=10)


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"attention_rank": None, "ffn_rank": None}, {"name": "loro"}, "name is loro but no layer has factors"),
        ({"bottleneck_activation": "silu"}, {"name": "loro"}, "bottleneck_activation = silu stands between"),
        (
            {"ffn_rank": 8, "sparsity": SparsityConfig(placement=["ffn_bottleneck"])},
            {"name": "loro"},
            "ffn_bottleneck in model.config.sparsity.placement stands between",
        ),
        ({}, {"name": "galore", "galore_rank": 4}, "galore_rank is 4 but a matrix of the blocks has only 4"),
    ],
)
def test_an_optimizer_that_does_not_suit_the_model_is_refused(
    make_model: MakeModel, changes: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        build_optimizer(make_model(**changes), OptimizerConfig(**config, warmup_steps=0), total_steps=10)
    assert "\n" not in str(refusal.value)
