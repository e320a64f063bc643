"""2:4 selection against a slow, obvious restatement of the rule."""

from __future__ import annotations

import math

import pytest
import torch
from spread_values import apart
from torch import Tensor

from elas_lightning.ops import relu2_sparsify_24, sparsify_24

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def by_sorting(x: Tensor) -> Tensor:
    """The rule in plain Python: order each four by magnitude (NaN first), then by index; keep two."""

    def order(group: list[float]) -> list[int]:
        return sorted(range(4), key=lambda i: (0, 0, i) if math.isnan(group[i]) else (1, -abs(group[i]), i))

    groups = x.reshape(-1, 4)
    out = torch.zeros_like(groups)
    for row, group in enumerate(groups.tolist()):
        for i in order(group)[:2]:
            out[row, i] = groups[row, i]
    return out.reshape(x.shape)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    integer = BITS[actual.element_size()]
    assert torch.equal(actual.contiguous().view(integer), expected.contiguous().view(integer))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_and_every_tie_of_four(dtype: torch.dtype) -> None:
    nan, inf = math.nan, math.inf
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, inf, -inf, nan], dtype=dtype)
    x = torch.cartesian_prod(values, values, values, values)
    assert_same_bits(sparsify_24(x), by_sorting(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_values(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 24, dtype=torch.float64).to(dtype)
    assert_same_bits(sparsify_24(x), by_sorting(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_with_its_sign_bit_set_stays_visible(dtype: torch.dtype) -> None:
    x = torch.tensor([3.0, 5.0, 0.0, math.inf], dtype=dtype)
    x.view(BITS[x.element_size()])[2] = -1  # all bits set
    assert torch.signbit(x[2])
    assert sparsify_24(x).isnan().tolist() == [False, False, True, False]
    assert sparsify_24(x)[3] == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_smallest_magnitudes_are_ranked(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([0.0, tiny / 2, -tiny, tiny / 4], dtype=dtype)
    assert sparsify_24(x).tolist() == [0.0, x[1].item(), x[2].item(), 0.0]


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_axis(dim: int) -> None:
    x = torch.randn(8, 12, 4)
    assert_same_bits(sparsify_24(x, dim), by_sorting(x.movedim(dim, -1).contiguous()).movedim(-1, dim))


def test_non_contiguous_input() -> None:
    x = torch.randn(12, 16)
    for view in (x.t(), x[:, ::2], x[::3, 4:12], x[:, :1].expand(12, 8)):
        assert_same_bits(sparsify_24(view), by_sorting(view.contiguous()))


@pytest.mark.parametrize("shape", [(4,), (0, 8), (2, 0), (1, 1, 1, 4)])
def test_small_and_empty_shapes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert_same_bits(sparsify_24(x), by_sorting(x))


def test_input_is_left_alone() -> None:
    x = torch.randn(4, 8)
    before = x.clone()
    sparsify_24(x)
    relu2_sparsify_24(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu2_is_the_composition(dtype: torch.dtype) -> None:
    # values whose squares overflow and underflow: the ranking is that of the squares
    x = torch.cat((torch.randn(16, 32), torch.randn(16, 32) * 1e30, torch.randn(16, 32) * 1e-30)).to(dtype)
    for gradient in ("ste", "masked"):
        assert_same_bits(relu2_sparsify_24(x, gradient=gradient), sparsify_24(x.relu() ** 2))


def test_relu2_keeps_nan() -> None:
    x = torch.tensor([-1.0, math.nan, 3.0, 2.0])
    out = relu2_sparsify_24(x)
    assert out[1].isnan()
    assert out[[0, 2, 3]].tolist() == [0.0, 9.0, 0.0]


@pytest.mark.parametrize("dim", [0, -1])
def test_masked_gradient_is_the_numerical_one(dim: int) -> None:
    x = apart(4, 8)
    assert torch.autograd.gradcheck(lambda x: sparsify_24(x, dim, gradient="masked"), x)
    assert torch.autograd.gradgradcheck(lambda x: sparsify_24(x, dim, gradient="masked") ** 2, x)


def test_masked_gradient_of_relu2_is_the_numerical_one() -> None:
    x = apart(3, 8)
    assert torch.autograd.gradcheck(lambda x: relu2_sparsify_24(x, gradient="masked"), x)
    assert torch.autograd.gradgradcheck(lambda x: relu2_sparsify_24(x, gradient="masked"), x)


def test_ste_gradient_is_that_of_the_dense_op() -> None:
    x, weight = apart(4, 8), torch.randn(4, 8, dtype=torch.float64)
    (through_24,) = torch.autograd.grad((sparsify_24(x, 0) * weight).sum(), x)
    assert torch.equal(through_24, weight)
    (through_24,) = torch.autograd.grad((relu2_sparsify_24(x) * weight).sum(), x)
    (dense,) = torch.autograd.grad((x.relu().square() * weight).sum(), x)
    torch.testing.assert_close(through_24, dense, rtol=1e-15, atol=0)


def test_masked_gradient_ignores_nan_where_nothing_was_kept() -> None:
    x = torch.tensor([4.0, 3.0, 2.0, 1.0], requires_grad=True)
    sparsify_24(x, gradient="masked").backward(torch.tensor([1.0, 2.0, math.nan, math.inf]))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparsify_24(torch.zeros(2, 6)), r"shape \(2, 6\) has size 6 in dim -1.* multiple of 4"),
        (lambda: sparsify_24(torch.zeros(6, 4), 0), r"shape \(6, 4\) has size 6 in dim 0"),
        (lambda: relu2_sparsify_24(torch.zeros(7)), r"shape \(7,\) has size 7"),
        (lambda: sparsify_24(torch.zeros(4), 1), r"dim 1 does not exist in shape \(4,\)"),
        (lambda: sparsify_24(torch.tensor(1.0)), r"dim -1 does not exist in shape \(\)"),
        (lambda: sparsify_24(torch.zeros(4, dtype=torch.int32)), "not torch.int32"),
        (lambda: sparsify_24(torch.zeros(4), gradient="exact"), "'exact' is unknown: choose ste or masked"),
        (lambda: relu2_sparsify_24(torch.zeros(4), gradient="x"), "'x' is unknown: choose ste or masked"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
