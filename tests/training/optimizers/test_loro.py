"""LORO's ordinary and exact steps against AdamW and against whole matrices."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer
from elas_lightning.training.optimizers.config import LoroDirection

MakeModel = Callable[..., Llama]
GiveGradients = Callable[[Iterable[torch.nn.Parameter], int], None]


def _config(direction: LoroDirection = "adam", decay: float = 0.0) -> OptimizerConfig:
    return OptimizerConfig(
        name="loro",
        lr=0.1,
        block_lr_ratio=0.25,
        restart_every=3,
        warmup_steps=0,
        min_lr_ratio=1.0,
        weight_decay=decay,
        loro_direction=direction,
        loro_exact_lr_ratio=0.5,
    )


def _after(steps: int, model: Llama, config: OptimizerConfig, give: GiveGradients) -> torch.optim.Optimizer:
    optimizer, _ = build_optimizer(model, config, total_steps=100)
    for seed in range(steps):
        give(model.parameters(), seed)
        optimizer.step()
    return optimizer


def test_between_exact_steps_it_is_adamw(make_model: MakeModel, give_gradients: GiveGradients) -> None:
    adamw = OptimizerConfig(lr=0.1, block_lr_ratio=0.25, warmup_steps=0, min_lr_ratio=1.0, weight_decay=0.1)
    mine, theirs = make_model(ffn_rank=None), make_model(ffn_rank=None)
    _after(2, mine, _config(decay=0.1), give_gradients)
    _after(2, theirs, adamw, give_gradients)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name)


def _layers(model: Llama) -> dict[str, LowRankLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}


def _whole_step(layer: LowRankLinear, gradient_B: Tensor, gradient_A: Tensor, lr: float) -> Tensor:
    """Projection and retraction of the whole matrix: A's gradient says what lies in the span of B."""
    B, A = layer.B.detach().double(), layer.A.detach().double()
    right = torch.linalg.pinv(A) @ A
    left = B @ torch.linalg.pinv(B)
    GV = gradient_B.double() @ torch.linalg.pinv(A).T @ right
    UG = left @ torch.linalg.pinv(B).T @ gradient_A.double()
    moved = B @ A - lr * (UG + (GV - left @ GV))
    U, S, Vh = torch.linalg.svd(moved, full_matrices=False)
    rank = A.shape[0]
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


@pytest.mark.parametrize("direction", ["adam", "gradient"])
def test_every_third_step_is_exact_at_its_own_rate_and_then_all_is_forgotten(
    make_model: MakeModel, give_gradients: GiveGradients, direction: LoroDirection
) -> None:
    config = _config(direction, decay=0.2)
    model = make_model()
    optimizer = _after(2, model, config, give_gradients)
    memory = {p: {k: v.double() for k, v in optimizer.state[p].items()} for p in model.parameters()}
    give_gradients(model.parameters(), 2)

    def gradient(parameter: torch.nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        if direction == "gradient":
            return parameter.grad
        mean = 0.9 * memory[parameter]["exp_avg"] + 0.1 * parameter.grad
        square = 0.999 * memory[parameter]["exp_avg_sq"] + 0.001 * parameter.grad**2
        return mean / (1 - 0.9**3) / ((square / (1 - 0.999**3)).sqrt() + 1e-8)

    # weight decay reaches the product through both of its factors
    expected = {
        name: (1 - 0.025 * 0.2) ** 2 * _whole_step(m, gradient(m.B), gradient(m.A), 0.05)
        for name, m in _layers(model).items()
    }
    optimizer.step()
    for name, layer in _layers(model).items():
        product = layer.B.detach().double() @ layer.A.detach().double()
        torch.testing.assert_close(product, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    for parameter in model.parameters():
        assert not any(value.any() for value in optimizer.state[parameter].values())


def test_a_reset_of_the_factors_leaves_the_others_their_moments(
    make_model: MakeModel, give_gradients: GiveGradients
) -> None:
    model = make_model()
    optimizer = _after(3, model, replace(_config(), loro_reset="factors"), give_gradients)
    remembered = {name for name, p in model.named_parameters() if optimizer.state[p]["exp_avg"].any()}
    assert remembered == {n for n, _ in model.named_parameters() if not n.endswith((".A", ".B"))}


def test_embedding_head_and_norms_take_adamws_step_at_the_exact_step_too(
    make_model: MakeModel, give_gradients: GiveGradients
) -> None:
    mine, theirs = make_model(), make_model()
    _after(3, mine, _config(), give_gradients)
    _after(3, theirs, OptimizerConfig(lr=0.1, warmup_steps=0, min_lr_ratio=1.0), give_gradients)
    for name in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
        torch.testing.assert_close(mine.state_dict()[name], theirs.state_dict()[name], msg=name)


def test_the_count_of_steps_is_saved_and_loaded(make_model: MakeModel, give_gradients: GiveGradients) -> None:
    whole, broken = make_model(), make_model()
    _after(5, whole, _config(), give_gradients)
    saved = _after(2, broken, _config(), give_gradients).state_dict()
    optimizer, _ = build_optimizer(broken, _config(), total_steps=100)
    optimizer.load_state_dict(saved)
    for seed in range(2, 5):
        give_gradients(broken.parameters(), seed)
        optimizer.step()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, broken.state_dict()[name]), name


def test_bfloat16_factors_are_stepped_in_float32(make_model: MakeModel, give_gradients: GiveGradients) -> None:
    model = make_model().bfloat16()
    _after(3, model, _config("gradient"), give_gradients)
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in model.parameters())
