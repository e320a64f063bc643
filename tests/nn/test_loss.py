"""The fused head and loss against torch's linear layer and cross entropy, and what it keeps in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from elas_lightning.nn import loss as loss_module
from elas_lightning.nn.loss import linear_next_token_loss

VOCABULARY, WIDTH, BATCH, TIME = 50, 8, 3, 7


# The tracer looks at inputs that are no leaves, and inductor imports what is deprecated; torch warns of itself.
traced = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf.*:UserWarning",
    "ignore:.*torch.jit.script_method.*:DeprecationWarning",
)


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden features, head and labels, 12 of which are real."""
    hidden = torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (BATCH, TIME))
    labels[0, 5:] = -100
    labels[2] = -100
    return hidden, weight, labels


def whole(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The specification: torch's own functions on all logits at once."""
    logits = F.linear(hidden, weight).flatten(0, 1)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels.flatten(), reduction="sum")


def chunks_of(monkeypatch: pytest.MonkeyPatch, rows: int, vocabulary: int = VOCABULARY) -> None:
    monkeypatch.setitem(loss_module._CHUNK_ENTRIES, "cpu", rows * vocabulary)


# 21 positions: one at a time, a last chunk of one, chunks that fit, a ragged last one, one chunk, and more room
@pytest.mark.parametrize("rows", [0, 1, 5, 7, 8, 20, 21, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int) -> None:
    chunks_of(monkeypatch, rows)
    hidden, weight, labels = example(dtype)
    total, count = linear_next_token_loss(hidden, weight, labels)
    expected = whole(hidden, weight, labels)
    assert total.dtype == dtype
    assert (count.dtype, count.item()) == (torch.int64, 12)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(
        torch.autograd.grad(total / count, (hidden, weight)), torch.autograd.grad(expected / 12, (hidden, weight))
    )


def test_gradients_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 5)
    hidden, weight, labels = example(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_next_token_loss(h, w, labels)[0], (hidden, weight), fast_mode=True
    )


def test_one_position() -> None:
    hidden, weight, _ = example()
    labels = torch.tensor([[3]])
    total, _ = linear_next_token_loss(hidden[:1, :1], weight, labels)
    torch.testing.assert_close(total, whole(hidden[:1, :1], weight, labels))


def test_backward_twice_and_a_scaled_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 5)
    hidden, weight, labels = example()
    total, _ = linear_next_token_loss(hidden, weight, labels)
    once = torch.autograd.grad(total, weight, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(-3 * total, weight)[0], -3 * once)


def _error(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_autocast_is_as_exact_as_the_whole_product(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Products in bfloat16, everything summed in float32: more chunks must not mean a worse gradient."""
    chunks_of(monkeypatch, rows)
    hidden = torch.randn(2, 256, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (2, 256))
    exact = torch.autograd.grad(whole(hidden.double(), weight.double(), labels), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_next_token_loss(hidden, weight, labels)
        theirs = whole(hidden, weight, labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, theirs)
    ours = torch.autograd.grad(total, (hidden, weight))
    others = torch.autograd.grad(theirs, (hidden, weight))
    for mine, other, truth in zip(ours, others, exact, strict=True):
        assert mine.dtype == torch.float32
        assert _error(mine, truth.double()) < 1.2 * _error(other, truth.double()) + 1e-4


def test_a_bfloat16_model_sums_its_weight_gradient_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 1)
    weight = torch.randn(VOCABULARY, WIDTH).bfloat16().requires_grad_()
    hidden = torch.randn(1, 1, WIDTH).expand(1, 1024, WIDTH).bfloat16().requires_grad_()
    labels = torch.zeros(1, 1024, dtype=torch.int64)
    total, _ = linear_next_token_loss(hidden, weight, labels)
    gradient = torch.autograd.grad(total, weight)[0]
    exact = torch.autograd.grad(whole(hidden.double(), weight.double(), labels), weight)[0]
    assert gradient.dtype == torch.bfloat16
    # a bfloat16 sum of 1024 equal terms stands still after 256 of them
    assert (gradient.double() - exact.double()).norm() < 0.02 * exact.double().norm()


def test_positions_without_target_have_no_gradient() -> None:
    hidden, weight, labels = example()
    linear_next_token_loss(hidden, weight, labels)[0].backward()
    assert hidden.grad is not None
    assert (hidden.grad[labels == -100] == 0).all()
    assert (hidden.grad[labels != -100] != 0).all()


def test_uniform_logits_cost_log_vocabulary() -> None:
    total, count = linear_next_token_loss(
        torch.zeros(2, 3, WIDTH), torch.ones(32, WIDTH), torch.ones(2, 3, dtype=torch.int64)
    )
    assert total.item() == pytest.approx(6 * math.log(32))
    assert count.item() == 6


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[[1e4]]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    total, _ = linear_next_token_loss(hidden, weight, torch.tensor([[1]]))
    total.backward()
    assert total.item() == pytest.approx(2e4)
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1e4], [-1e4], [0.0]]


def test_no_targets() -> None:
    hidden, weight, labels = example()
    total, count = linear_next_token_loss(hidden, weight, torch.full_like(labels, -100))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("label", [-1, VOCABULARY])
def test_a_label_outside_the_vocabulary_raises(label: int) -> None:
    hidden, weight, _ = example()
    with pytest.raises((RuntimeError, IndexError), match=r"out of (bounds|range)"):
        linear_next_token_loss(hidden[:1, :1], weight, torch.tensor([[label]]))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["hidden", "weight"])
def test_what_is_not_finite_stays_visible(which: str, poison: float) -> None:
    hidden, weight, labels = example()
    with torch.no_grad():
        (hidden[0] if which == "hidden" else weight)[0, 3] = poison
    total, _ = linear_next_token_loss(hidden, weight, labels)
    total.backward()
    assert not total.isfinite()
    assert weight.grad is not None
    assert not weight.grad.isfinite().all()


@traced
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["traced", "inductor"]
)
def test_compiled_form_agrees(monkeypatch: pytest.MonkeyPatch, backend: str, autocast: bool) -> None:
    chunks_of(monkeypatch, 5)
    torch.compiler.reset()
    compiled = torch.compile(linear_next_token_loss, fullgraph=True, backend=backend)
    # a second shape makes the number of positions symbolic, as a shorter last batch of a validation does
    for batch in (BATCH, 2):
        hidden, weight, labels = example()
        arguments = hidden[:batch], weight, labels[:batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total, count = compiled(*arguments)
            expected, _ = linear_next_token_loss(*arguments)
            with torch.no_grad():
                evaluated, _ = compiled(*arguments)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(evaluated, expected)
        torch.testing.assert_close(
            torch.autograd.grad(total / count, (hidden, weight)),
            torch.autograd.grad(expected / count, (hidden, weight)),
        )


class _Largest(TorchDispatchMode):
    """Entries of the largest tensor any operation gave out, and how many products of matrices there were."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """Five chunks of logits; three products each with gradients, and one without."""
    vocabulary, rows = 1000, 16
    chunks_of(monkeypatch, rows, vocabulary)
    hidden, weight = torch.randn(4, 20, WIDTH), torch.randn(vocabulary, WIDTH)
    labels = torch.randint(vocabulary, (4, 20))
    # the function inside the operator, since a dispatch mode sees an operator from outside only
    with torch.no_grad(), _Largest() as largest:
        loss_module._sum_nll(hidden.flatten(0, 1), weight, labels.flatten(), torch.float32, training)
    assert largest.entries == rows * vocabulary
    assert largest.products == 5 * (3 if training else 1)


@traced
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backend", [None, "aot_eager", "aot_eager_decomp_partition"])
def test_only_the_gradients_are_kept_for_backward(
    monkeypatch: pytest.MonkeyPatch, backend: str | None, autocast: bool
) -> None:
    """Under compilers too, which decide by themselves what a graph keeps."""
    chunks_of(monkeypatch, 5)
    torch.compiler.reset()
    loss = torch.compile(linear_next_token_loss, backend=backend) if backend else linear_next_token_loss
    hidden, weight, labels = example()
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss(hidden, weight, labels)
    assert sorted(kept) == [(BATCH * TIME, WIDTH), (VOCABULARY, WIDTH)]


def test_second_derivatives_are_refused() -> None:
    hidden, weight, labels = example()
    total, _ = linear_next_token_loss(hidden, weight, labels)
    (gradient,) = torch.autograd.grad(total, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize("gradients", [False, True])
def test_the_operator_is_what_it_tells_compilers(gradients: bool) -> None:
    hidden, weight, labels = example()
    flat = hidden.detach().flatten(0, 1), weight.detach(), labels.flatten(), torch.float32, gradients
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(loss_module._linear_cross_entropy, flat, test_utils=tests)


def test_evaluation_keeps_nothing() -> None:
    hidden, weight, labels = example()
    with torch.inference_mode():
        total, _ = linear_next_token_loss(hidden, weight, labels)
    torch.testing.assert_close(total, whole(hidden, weight, labels).detach())
    assert not total.requires_grad
