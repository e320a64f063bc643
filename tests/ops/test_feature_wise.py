"""The feature-wise backward against its definition, spelled out in float64 without autograd."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.ops import activate, sparsify, sparsify_24
from elas_lightning.ops.feature_wise import feature_wise_ffn, feature_wise_keep
from elas_lightning.ops.patterns import random_bits


def keep_by_definition(hidden: Tensor, dense_share: float, permute: bool) -> Tensor:
    """Feature by feature: dense where it is among the least sparse, else the two largest of each four tokens."""
    tokens, features = hidden.shape
    order = list(range(tokens))
    if permute:
        bits = random_bits((tokens,), 0, hidden.device).tolist()
        order.sort(key=lambda t: bits[t])
    nonzeros = [(hidden[:, f] != 0).sum().item() for f in range(features)]
    dense = sorted(range(features), key=lambda f: -nonzeros[f])[: math.ceil(dense_share * features)]
    keep = torch.zeros(tokens, features, dtype=torch.bool)
    for f in range(features):
        for start in range(0, tokens, 4):
            group = order[start : start + 4]
            group.sort(key=lambda t: -abs(hidden[t, f].item()))  # stable: of equal ones the earlier token
            keep[group[:2], f] = True
    keep[:, dense] = True
    return keep


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("dense_share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("permute", [False, True])
def test_mask(tokens: int, dense_share: float, permute: bool) -> None:
    torch.manual_seed(0)
    hidden = sparsify_24(torch.randn(tokens, 24).relu().square())
    keep = feature_wise_keep(hidden, dense_share=dense_share, permute=permute)
    expected = keep_by_definition(hidden, dense_share, permute)
    assert torch.equal(hidden * keep, hidden * expected)
    # among zeros the choice shows nowhere but in the straight-through gradient; whole groups have the tie rule
    if tokens % 4 == 0:
        assert torch.equal(keep, expected)


def test_the_permutation_breaks_up_neighbours_and_is_fixed() -> None:
    hidden = torch.zeros(64, 1)
    hidden[:8] = 1.0  # one feature that fires for eight tokens in a row
    naive = feature_wise_keep(hidden, dense_share=0.0, permute=False)
    mixed = feature_wise_keep(hidden, dense_share=0.0, permute=True)
    assert (naive & (hidden != 0)).sum() == 4
    assert (mixed & (hidden != 0)).sum() > 6
    assert torch.equal(mixed, feature_wise_keep(hidden, dense_share=0.0, permute=True))


def tensors(gated: bool) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """z (2, 5, 6) and up (16, 6), twice if gated; down (7, 16); the output's gradient"""
    torch.manual_seed(3)
    f64 = partial(torch.randn, dtype=torch.float64)
    factors = [(f64(2, 5, 6), f64(16, 6)) for _ in range(1 + gated)]
    return factors, f64(7, 16), f64(2, 5, 7)


@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("dense_share", [0.0, 0.2])
@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_those_of_the_definition(gated: bool, permute: bool, dense_share: float, gradient: Any) -> None:
    factors, down, grad = tensors(gated)
    leaves = [t.requires_grad_() for t in (*(t for pair in factors for t in pair), down)]
    out = feature_wise_ffn(
        factors,
        (lambda g, u: F.silu(g) * u) if gated else partial(activate, activation="relu2"),
        partial(sparsify, gradient=gradient),
        down,
        dense_share=dense_share,
        permute=permute,
    )
    actual = torch.autograd.grad(out, leaves, grad)

    with torch.no_grad():
        rows = [(z.reshape(10, 6), up) for z, up in factors]
        pre = [z @ up.T for z, up in rows]
        hidden = pre[0].sigmoid() * pre[0] * pre[1] if gated else pre[0].clamp(min=0) ** 2
        kept = sparsify_24(hidden) != 0
        sparse = hidden * kept
        torch.testing.assert_close(out.reshape(10, 7), sparse @ down.T, rtol=1e-12, atol=1e-12)
        mask = feature_wise_keep(sparse, dense_share=dense_share, permute=permute)
        grad_rows = grad.reshape(10, 7)
        grad_hidden = grad_rows @ down
        if gradient == "masked":
            grad_hidden = grad_hidden * kept
        if gated:
            s = pre[0].sigmoid()
            slope = s * (1 + pre[0] * (1 - s))
            grad_pre = [grad_hidden * pre[1] * slope, grad_hidden * pre[0] * s]
        else:
            grad_pre = [grad_hidden * 2 * pre[0].clamp(min=0)]
        expected = []
        for (_, up), d in zip(rows, grad_pre, strict=True):
            expected.append((d @ up).reshape(2, 5, 6))
            z = rows[len(expected) // 2][0]
            expected.append((d * mask).T @ z)
        expected.append(grad_rows.T @ (sparse * mask))
    torch.testing.assert_close(list(actual), expected, rtol=1e-10, atol=1e-12)


def test_everything_dense_is_the_ordinary_backward() -> None:
    factors, down, grad = tensors(False)
    ((z, up),) = factors
    leaves = [t.requires_grad_() for t in (z, up, down)]
    relu2 = partial(activate, activation="relu2")
    options: Any = {"dense_share": 1.0, "permute": True}
    out = feature_wise_ffn(factors, relu2, sparsify_24, down, **options)
    ordinary = F.linear(sparsify_24(relu2(F.linear(z, up))), down)
    torch.testing.assert_close(torch.autograd.grad(out, leaves, grad), torch.autograd.grad(ordinary, leaves, grad))


def test_nothing_unknown_of_a_dropped_entry_reaches_the_weights() -> None:
    factors, down, grad = tensors(False)
    ((_, up),) = factors
    up.requires_grad_()
    grad[0, 0] = math.inf
    options: Any = {"dense_share": 0.0, "permute": False}
    relu2 = partial(activate, activation="relu2")
    masked = partial(sparsify, gradient="masked")
    (got,) = torch.autograd.grad(feature_wise_ffn(factors, relu2, masked, down, **options), up, grad)
    # features of the first token that the masks drop have finite gradients
    assert got.isfinite().all(-1).any()
    assert not got.isfinite().all()


def test_autocast_to_bfloat16() -> None:
    factors, down, _ = tensors(True)
    ((z, up), (z2, up2)) = [(z.float().requires_grad_(), up.float().requires_grad_()) for z, up in factors]
    down = down.float().requires_grad_()
    options: Any = {"dense_share": 0.05, "permute": True}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = feature_wise_ffn([(z, up), (z2, up2)], lambda g, u: F.silu(g) * u, sparsify_24, down, **options)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    for leaf in (z, up, z2, up2, down):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
