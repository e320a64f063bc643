"""GaLore against its formulas on whole matrices, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer
from elas_lightning.training.optimizers.galore import GaLore, subspace


def _galore(weight: torch.nn.Parameter, decay: float = 0.0) -> GaLore:
    plain = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    return GaLore(
        torch.optim.AdamW([plain]),
        {"params": [weight], "lr": 0.1, "weight_decay": decay},
        rank=3,
        update_every=4,
        scale=0.5,
        betas=(0.8, 0.9),
        eps=1e-6,
    )


def _projector(gradient: Tensor, wide: bool) -> Tensor:
    """Eigenvectors of the smaller Gram matrix: the same subspace by another road."""
    gram = gradient @ gradient.T if wide else gradient.T @ gradient
    return torch.linalg.eigh(gram).eigenvectors.flip(-1)[:, :3]


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_steps_are_adam_in_a_subspace_that_changes_every_fourth(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    wide = shape[0] <= shape[1]
    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    expected = weight.detach().clone()
    optimizer = _galore(weight, decay=0.3)
    # eigenvectors have no sign, and moments outlive the subspace: both roads must take the same ones
    projector = mean = square = torch.empty(0)
    for step in range(10):
        gradient = torch.randn(shape, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        if step % 4 == 0:
            projector = _projector(gradient, wide)
            mine = optimizer.state[weight]["projector"]
            torch.testing.assert_close((mine.T @ projector).abs(), torch.eye(3).double(), atol=1e-6, rtol=0)
            projector = projector * (mine.T @ projector).diagonal().sign()
        inside = projector.T @ gradient if wide else gradient @ projector
        if step == 0:
            mean, square = torch.zeros_like(inside), torch.zeros_like(inside)
        mean, square = 0.8 * mean + 0.2 * inside, 0.9 * square + 0.1 * inside**2
        direction = mean / (1 - 0.8 ** (step + 1)) / ((square / (1 - 0.9 ** (step + 1))).sqrt() + 1e-6)
        back = projector @ direction if wide else direction @ projector.T
        expected = expected * (1 - 0.1 * 0.3) - 0.1 * 0.5 * back
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-8, atol=1e-8)


def test_a_subspace_of_full_rank_rotates_adam_and_loses_nothing() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(3, 8, dtype=torch.float64)
    projector = subspace(gradient, 3)
    torch.testing.assert_close(projector @ (projector.T @ gradient), gradient)


def test_embedding_head_and_norms_take_adamws_step(
    make_model: Callable[..., Llama], give_gradients: Callable[..., None]
) -> None:
    mine, theirs = make_model(), make_model()
    for model, name in ((mine, "galore"), (theirs, "adamw")):
        config = OptimizerConfig(name=name, galore_rank=2, lr=0.1, warmup_steps=0)
        optimizer, _ = build_optimizer(model, config, total_steps=10)
        for seed in range(2):
            give_gradients(model.parameters(), seed)
            optimizer.step()
    for name in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
        torch.testing.assert_close(mine.state_dict()[name], theirs.state_dict()[name], msg=name)
