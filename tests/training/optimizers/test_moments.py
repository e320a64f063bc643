"""Adam's direction against torch's own, and what is forgotten at a reset."""

from collections.abc import Callable

import pytest
import torch

from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer, reset_moments
from elas_lightning.training.optimizers.config import OptimizerName
from elas_lightning.training.optimizers.moments import adam_direction


def test_the_direction_is_torchs_adam_before_the_rate() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1.0, betas=(0.8, 0.9), eps=1e-3)
    state: dict[str, torch.Tensor] = {}
    for _ in range(4):
        weight.grad = torch.randn_like(weight)
        before = weight.detach().clone()
        adam.step()
        direction = adam_direction(weight.grad, state, betas=(0.8, 0.9), eps=1e-3)
        torch.testing.assert_close(direction, before - weight.detach())


@pytest.mark.parametrize("name", ["adamw", "loro", "muon", "galore"])
def test_after_a_reset_a_parameter_is_stepped_as_if_for_the_first_time(
    make_model: Callable[..., Llama], give_gradients: Callable[..., None], name: OptimizerName
) -> None:
    config = OptimizerConfig(name=name, lr=0.1, warmup_steps=0, galore_rank=3)

    def steps(reset: bool) -> dict[str, torch.Tensor]:
        """How far each parameter is moved by a third step, or by a first."""
        model = make_model()
        optimizer, _ = build_optimizer(model, config, total_steps=10)
        if reset:
            for seed in (1, 2):
                give_gradients(model.parameters(), seed)
                optimizer.step()
            reset_moments(optimizer, model.layers.parameters())
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        give_gradients(model.parameters(), 3)
        optimizer.step()
        return {n: p.detach() - before[n] for n, p in model.named_parameters()}

    first, again = steps(reset=False), steps(reset=True)
    for key, moved in first.items():
        same = torch.allclose(moved, again[key], rtol=1e-3, atol=1e-5)
        assert same == key.startswith("layers."), key


def test_nothing_to_forget_before_the_first_step(make_model: Callable[..., Llama]) -> None:
    model = make_model()
    optimizer, _ = build_optimizer(model, OptimizerConfig(warmup_steps=0), total_steps=10)
    reset_moments(optimizer, model.parameters())
    assert not optimizer.state
