"""``torch.func``: per-sample gradients, as ``vmap`` over ``grad`` makes them, are those of each sample alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from elas_lightning.ops import lowrank_ffn, relu2_sparsify_24, sparsify_24
from elas_lightning.ops.patterns import sparsify

UP, DOWN = torch.randn(16, 8, generator=torch.manual_seed(1)), torch.randn(16, 8, generator=torch.manual_seed(2))
OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparsify_24": sparsify_24,
    "sparsify_24, rows": lambda x: sparsify_24(x, 0),
    "masked gradient": lambda x: sparsify_24(x, gradient="masked"),
    "relu2_sparsify_24": relu2_sparsify_24,
    "lowrank_ffn": lambda x: lowrank_ffn(x, UP, DOWN),
    "soft threshold": lambda x: sparsify(x, pattern="2:4", method="soft_threshold"),
}


@pytest.mark.parametrize("op", OPS)
def test_gradients_by_sample(op: str) -> None:
    samples = torch.randn(3, 4, 8, generator=torch.manual_seed(0))

    def loss(x: Tensor) -> Tensor:
        return OPS[op](x).sin().sum()

    found = vmap(grad(loss))(samples)
    leaf = samples.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum((loss(sample) for sample in leaf), torch.zeros(())), leaf)
    torch.testing.assert_close(found, expected)
