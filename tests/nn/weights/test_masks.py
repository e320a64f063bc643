"""2:4 weights: which entries are kept, what gradient they get, when a mask changes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from elas_lightning.nn.weights.masked import DecayingMask, PruneOnce, magnitude_mask
from elas_lightning.nn.weights.rule import Place
from elas_lightning.nn.weights.soft_threshold import SoftThreshold, soft_threshold_24
from elas_lightning.nn.weights.transposable import transposable_mask, transposable_patterns
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.ops import sparsify_24

SR_STE = WeightsConfig(method="sr_ste", decay=0.3)


def _place(step: int, total: int = 60) -> Place:
    return Place(step, total, restart_every=20)


def test_there_are_ninety_transposable_patterns() -> None:
    every = [
        bits
        for bits in product((0, 1), repeat=16)
        if all(sum(bits[4 * i : 4 * i + 4]) == 2 for i in range(4)) and all(sum(bits[i::4]) == 2 for i in range(4))
    ]
    assert sorted(transposable_patterns()) == sorted(every)
    assert len(every) == 90


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (16, 4)])
def test_a_transposable_mask_is_the_best_of_all(shape: tuple[int, int]) -> None:
    weight_OI = torch.randn(shape, dtype=torch.float64)
    mask = transposable_mask(weight_OI)
    for row, column in product(range(0, shape[0], 4), range(0, shape[1], 4)):
        block = weight_OI[row : row + 4, column : column + 4].abs()
        kept = mask[row : row + 4, column : column + 4]
        assert (kept.sum(0) == 2).all()
        assert (kept.sum(1) == 2).all()
        best = max(float((block.flatten() * torch.tensor(pattern)).sum()) for pattern in transposable_patterns())
        assert float(block[kept].sum()) == pytest.approx(best, rel=1e-12)
    # another way round, the same entries
    assert torch.equal(transposable_mask(weight_OI.T), mask.T)


def test_what_is_left_over_beyond_whole_groups_stays_dense() -> None:
    weight = torch.randn(6, 11)
    assert torch.equal(magnitude_mask(weight)[:, :8], magnitude_mask(weight[:, :8]))
    assert magnitude_mask(weight)[:, 8:].all()
    mask = transposable_mask(weight)
    assert torch.equal(mask[:4, :8], transposable_mask(weight[:4, :8]))
    assert mask[4:].all()
    assert mask[:, 8:].all()
    assert torch.equal(soft_threshold_24(weight)[:, :8], soft_threshold_24(weight[:, :8]))
    assert torch.equal(soft_threshold_24(weight)[:, 8:], weight[:, 8:])


@pytest.mark.parametrize("method", ["sr_ste", "transposable"])
def test_dropped_weights_keep_their_gradient_and_decay(method: str) -> None:
    config = WeightsConfig(method=method, decay=0.3)  # type: ignore[arg-type]
    weight = nn.Parameter(torch.randn(8, 12, dtype=torch.float64))
    rule = DecayingMask(weight, config)
    x, target = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    ((x @ rule(weight).T - target).square().sum() / 2).backward()
    rule.add_decay(weight)
    mask = (transposable_mask(weight) if method == "transposable" else magnitude_mask(weight)).double()
    with torch.no_grad():
        dense_gradient = (x @ (mask * weight).T - target).T @ x
        expected = dense_gradient + 0.3 * (1 - mask) * weight
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_the_magnitude_mask_is_sparsify_24s() -> None:
    weight = torch.randn(6, 16)
    weight[0] = 1.0  # ties
    rule = DecayingMask(weight, SR_STE)
    assert torch.equal(rule(weight), sparsify_24(weight))


def test_masks_are_chosen_anew_when_they_are_due() -> None:
    config = WeightsConfig(method="sr_ste", mask_every=4)
    weight = nn.Parameter(torch.randn(4, 8))
    rule = DecayingMask(weight, config)
    first = rule.mask.clone()
    with torch.no_grad():
        weight.copy_(torch.randn(4, 8))
    for step in (1, 2, 3):
        rule.after_step(weight, _place(step))
        assert torch.equal(rule.mask, first)
    rule.after_step(weight, _place(4))
    assert torch.equal(rule.mask, magnitude_mask(weight))
    assert not torch.equal(rule.mask, first)


def test_the_dense_end_begins_at_its_share() -> None:
    config = WeightsConfig(method="transposable", dense_end=1 / 6, decay=0.5)
    weight = nn.Parameter(torch.randn(8, 8))
    rule = DecayingMask(weight, config)
    rule.after_step(weight, _place(49))
    assert rule.mask.sum() == 32
    for step in (50, 51, 60):
        rule.after_step(weight, _place(step))
        assert torch.equal(rule(weight), weight)
    weight.grad = torch.zeros(8, 8)
    rule.add_decay(weight)
    assert not weight.grad.any()


def test_asp_prunes_once_and_its_mask_stays() -> None:
    weight = nn.Parameter(torch.randn(4, 8))
    rule = PruneOnce(weight, WeightsConfig(method="asp", asp_prune_at=0.25))
    before = weight.detach().clone()
    for step in range(1, 15):
        rule.after_step(weight, _place(step))
    assert torch.equal(rule(weight), before)
    rule.after_step(weight, _place(15))
    mask = rule.mask.clone()
    assert torch.equal(weight, sparsify_24(before))
    rule(weight).sum().backward()
    assert torch.equal(weight.grad, mask.float())
    with torch.no_grad():
        weight.add_(10 * torch.randn(4, 8))
    for step in range(16, 61):
        rule.after_step(weight, _place(step))
    assert torch.equal(rule.mask, mask)
    assert not rule(weight)[~mask].any()


def test_the_soft_threshold_by_hand() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.5], [0.0, 2.0, -2.0, 2.0]])
    expected = torch.tensor([[0.0, -1.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(soft_threshold_24(weight), expected)


def test_the_soft_threshold_is_continuous_where_the_hard_one_jumps() -> None:
    weight = torch.randn(200, 8, dtype=torch.float64)
    # where the second and the third change places
    weight[:, 1] = -weight[:, 0]
    weight[:, 2], weight[:, 3] = 0.1 * weight[:, 0], 3 * weight[:, 0]
    for size in (1e-3, 1e-6, 1e-9):
        step = size * torch.randn_like(weight)
        moved = (soft_threshold_24(weight + step) - soft_threshold_24(weight)).abs().max()
        # each entry moves by its own step and by its threshold's
        assert moved <= 2 * step.abs().max()
    jump = (sparsify_24(weight + step) - sparsify_24(weight - step)).abs().max()
    assert jump > 0.1


def test_s_ste_scales_by_least_squares_once_and_passes_the_gradient() -> None:
    weight = nn.Parameter(torch.randn(8, 16, dtype=torch.float64))
    rule = SoftThreshold(weight)
    sparse = soft_threshold_24(weight.detach())
    scales = rule.scale + torch.tensor([0.0, 1e-3, -1e-3])
    fits = [float((weight.detach() - scale * sparse).square().sum()) for scale in scales]
    assert min(fits) == fits[0]
    used = rule(weight)
    assert torch.equal(used, rule.scale * sparse)
    assert ((used.reshape(-1, 4) != 0).sum(1) <= 2).all()
    gradient = torch.randn_like(weight)
    used.backward(gradient)
    assert torch.equal(weight.grad, gradient)
    scale = rule.scale.clone()
    with torch.no_grad():
        weight.mul_(3)
    rule.after_step(weight, _place(7))
    assert torch.equal(rule.scale, scale)
