"""The schedule's shape, AdamW's groups and what is refused."""

import pytest
import torch
from torch import nn

from elas_lightning.errors import UserError
from elas_lightning.training.optimization import OptimizerConfig, build_optimizer, learning_rate_factor


def _factors(total: int = 100, warmup: int = 10, ratio: float = 0.1) -> list[float]:
    return [
        learning_rate_factor(step, total_steps=total, warmup_steps=warmup, min_lr_ratio=ratio)
        for step in range(total + 5)
    ]


def test_schedule_rises_to_the_peak_then_falls_to_the_minimum_and_stays() -> None:
    factors = _factors()
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(a < b for a, b in zip(factors[:9], factors[1:10], strict=True))
    assert all(a > b for a, b in zip(factors[10:99], factors[11:100], strict=True))
    assert factors[55] == pytest.approx(0.55)  # half-way down the cosine, half-way between 1 and the minimum
    assert factors[100:] == [pytest.approx(0.1)] * 5


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    assert _factors(warmup=0)[0] == 1.0


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.matrix = nn.Embedding(7, 3), nn.RMSNorm(3), nn.Linear(3, 3, bias=False)


def test_only_matrices_decay() -> None:
    model = _Model()
    optimizer, _ = build_optimizer(model, OptimizerConfig(weight_decay=0.1, warmup_steps=1), total_steps=10)
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay_of) == len(list(model.parameters()))
    assert {name: decay_of[id(p)] for name, p in model.named_parameters()} == {
        "embedding.weight": 0.0,
        "norm.weight": 0.0,
        "matrix.weight": 0.1,
    }


def test_the_optimizer_follows_the_schedule() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=2, min_lr_ratio=0.5)
    optimizer, schedule = build_optimizer(_Model(), config, total_steps=4)
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
    [("lr", 0.0), ("lr", float("nan")), ("warmup_steps", -1), ("min_lr_ratio", 1.5), ("weight_decay", -0.1)],
)
def test_impossible_values_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"model\.optimizer\.{field} is {value}"):
        OptimizerConfig(**{field: value})


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="warmup_steps is 10 but the run has 10 steps"):
        build_optimizer(_Model(), OptimizerConfig(warmup_steps=10), total_steps=10)
