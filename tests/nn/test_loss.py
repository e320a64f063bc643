"""The summed cross entropy against torch's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from elas_lightning.nn import loss as loss_module
from elas_lightning.nn.loss import next_token_loss


def example(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    logits = (3 * torch.randn(3, 7, 50)).to(dtype).requires_grad_()
    labels = torch.randint(50, (3, 7))
    labels[0, 5:] = -100
    labels[2] = -100
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_entries", [1, 200, 2**21])
def test_value_and_gradient(monkeypatch, dtype: torch.dtype, chunk_entries: int) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_ENTRIES", chunk_entries)
    logits, labels = example(dtype)
    total, count = next_token_loss(logits, labels)
    expected = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    assert total.dtype == torch.float32
    assert count.item() == 12
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(
        torch.autograd.grad(total / count, logits), torch.autograd.grad(expected / 12, logits)
    )


def test_positions_without_target_have_no_gradient() -> None:
    logits, labels = example(torch.float32)
    next_token_loss(logits, labels)[0].backward()
    assert logits.grad is not None
    assert (logits.grad[labels == -100] == 0).all()
    assert (logits.grad[labels != -100] != 0).all()


def test_uniform_logits_cost_log_vocabulary() -> None:
    total, count = next_token_loss(torch.zeros(2, 3, 32), torch.ones(2, 3, dtype=torch.int64))
    assert total.item() == pytest.approx(6 * math.log(32))
    assert count.item() == 6


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    total, _ = next_token_loss(logits, torch.tensor([[1]]))
    total.backward()
    assert total.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[[1.0, -1.0, 0.0]]]


def test_no_targets() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    total, count = next_token_loss(logits, torch.full((2, 3), -100))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("label", [-1, 50])
def test_a_label_outside_the_vocabulary_raises(label: int) -> None:
    with pytest.raises((RuntimeError, IndexError), match=r"out of (bounds|range)"):
        next_token_loss(torch.randn(1, 1, 50), torch.tensor([[label]]))


def test_nan_stays_visible() -> None:
    logits, labels = example(torch.float32)
    with torch.no_grad():
        logits[0, 0, 3] = math.nan
    assert next_token_loss(logits, labels)[0].isnan()


def test_traced_form_agrees() -> None:
    logits, labels = example(torch.float32)
    traced = torch.compile(next_token_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(logits, labels), next_token_loss(logits, labels))
