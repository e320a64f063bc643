"""The schedule's shape, AdamW's groups and what is refused."""

import itertools

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer, learning_rate_factor


def _factors(total: int = 100, warmup: int = 10, ratio: float = 0.1) -> list[float]:
    return [
        learning_rate_factor(step, total_steps=total, warmup_steps=warmup, min_lr_ratio=ratio)
        for step in range(total + 5)
    ]


def test_schedule_rises_to_the_peak_then_falls_to_the_minimum_and_stays() -> None:
    factors = _factors()
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(a < b for a, b in itertools.pairwise(factors[:10]))
    assert all(a > b for a, b in itertools.pairwise(factors[10:100]))
    assert factors[55] == pytest.approx(0.55)  # half-way down the cosine, half-way between 1 and the minimum
    assert factors[100:] == [pytest.approx(0.1)] * 5


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    assert _factors(warmup=0)[0] == 1.0


def _model() -> Llama:
    return Llama(
        ModelConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_layers=1,
            num_heads=2,
            attention_rank=2,
            ffn_rank=None,
        )
    )


def _by_name(model: Llama, config: OptimizerConfig, field: str) -> dict[str, float]:
    optimizer, _ = build_optimizer(model, config, total_steps=10)
    of = {id(p): group[field] for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == len(list(model.parameters()))
    return {name: of[id(p)] for name, p in model.named_parameters()}


def test_only_matrices_decay() -> None:
    decay = _by_name(_model(), OptimizerConfig(weight_decay=0.1, warmup_steps=1), "weight_decay")
    assert {name for name, value in decay.items() if value == 0.0} == {
        "embed_tokens.weight",
        "norm.weight",
        "layers.0.input_layernorm.weight",
        "layers.0.post_attention_layernorm.weight",
    }


def test_the_matrices_of_the_blocks_learn_at_their_own_rate() -> None:
    rates = _by_name(_model(), OptimizerConfig(lr=0.4, block_lr_ratio=0.25, warmup_steps=0), "initial_lr")
    slow = {name for name, rate in rates.items() if rate == 0.1}
    assert slow == {n for n in rates if n.startswith("layers.") and "layernorm" not in n}
    assert {rate for name, rate in rates.items() if name not in slow} == {0.4}


def test_the_optimizer_follows_the_schedule() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=2, min_lr_ratio=0.5)
    optimizer, schedule = build_optimizer(_model(), config, total_steps=4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("block_lr_ratio", 0.0),
        ("warmup_steps", -1),
        ("min_lr_ratio", 1.5),
        ("weight_decay", -0.1),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"model\.optimizer\.{field} is {value}"):
        OptimizerConfig(**{field: value})


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="warmup_steps is 10 but the run has 10 steps"):
        build_optimizer(_model(), OptimizerConfig(warmup_steps=10), total_steps=10)
