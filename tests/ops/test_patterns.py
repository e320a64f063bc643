"""Every pattern and method against its definition, restated slowly; unbiasedness by exact integration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from spread_values import apart

from elas_lightning.ops import sparsify, sparsify_24
from elas_lightning.ops.patterns import METHODS, PATTERNS, STOCHASTIC, _sample, random_bits, width_multiple

KEPT = {"2:4": (2, 4), "1:4": (1, 4), "3:4": (3, 4), "2:8": (2, 8), "unstructured": (12, 24)}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [(p, m) for p in PATTERNS for m in METHODS if (p, m) != ("2:4", "magnitude")]


def order(group: list[float]) -> list[int]:
    """Indices from the largest magnitude down: NaN first, ties by index."""
    size = [math.inf if math.isnan(v) else abs(v) for v in group]
    return sorted(range(len(group)), key=lambda i: (not math.isnan(group[i]), -size[i], i))


def chances(group: list[float], k: int) -> list[float]:
    """The least-variance inclusion probabilities, by trying every number of entries that are kept for certain."""
    size = [abs(v) for v in group]
    ranked = sorted(size, reverse=True)
    if sum(v > 0 for v in size) <= k:
        return [float(v > 0) for v in size]
    for certain in range(k):
        tau = sum(ranked[certain:]) / (k - certain)
        chance = [min(1.0, v / tau) for v in size]
        if sum(v > tau for v in size) == certain:
            return chance
    raise AssertionError


def by_definition(group: list[float], k: int, method: str, bits: list[int]) -> list[float]:
    out = [0.0] * len(group)
    ranked = order(group)
    if method == "magnitude":
        chosen = {i: group[i] for i in ranked[:k]}
    elif method == "soft_threshold":
        threshold = abs(group[ranked[k]])
        chosen = {i: math.copysign(abs(group[i]) - threshold, group[i]) for i in ranked[:k]}
    elif method == "first":
        chosen = {i: group[i] for i in range(k)}
    elif method == "random":
        chosen = {i: group[i] for i in sorted(range(len(group)), key=lambda i: (-bits[i], i))[:k]}
    else:
        chance, upto, chosen = chances(group, k), 0.0, {}
        for i, p in enumerate(chance):
            before, upto = upto, upto + p
            uniform = (bits[0] + 0.5) / 2**32
            if math.floor(min(upto, k) + uniform) > math.floor(min(before, k) + uniform):
                chosen[i] = group[i] / p
    for i, value in chosen.items():
        out[i] = value
    return out


@pytest.mark.parametrize(("pattern", "method"), OTHERS)
@pytest.mark.parametrize("same_rows", [False, True])
def test_definition(pattern: Any, method: Any, same_rows: bool) -> None:
    torch.manual_seed(0)
    k, m = KEPT[pattern]
    x = torch.randn(3, 5, 24, dtype=torch.float64) * torch.randint(2, (3, 5, 24))
    out = sparsify(x, pattern=pattern, method=method, key=7, same_rows=same_rows)
    shape = (*(() if same_rows else (3,)), 5, 24 // m, 1 if method == "mvue" else m)
    bits = random_bits(shape, 7, x.device).expand(3, 5, 24 // m, -1).reshape(-1, shape[-1]).tolist()
    expected = [by_definition(g, k, method, b) for g, b in zip(x.reshape(-1, m).tolist(), bits, strict=True)]
    torch.testing.assert_close(out.reshape(-1, m), torch.tensor(expected).double(), rtol=1e-6, atol=0)
    assert ((out != 0).reshape(-1, m).sum(-1) <= k).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["1:4", "3:4"])
def test_every_order_and_every_tie_of_four(pattern: Any, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan], dtype=dtype)
    x = torch.cartesian_prod(values, values, values, values)
    keep = torch.zeros(len(x), 4, dtype=torch.bool)
    for row, group in enumerate(x.tolist()):
        keep[row, order(group)[: KEPT[pattern][0]]] = True
    out = sparsify(x, pattern=pattern)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[out.element_size()]
    assert torch.equal(out.view(integer), torch.where(keep, x, 0).view(integer))


@pytest.mark.parametrize("pattern", ["2:8", "unstructured"])
def test_ties_go_to_the_lower_index(pattern: Any) -> None:
    x = torch.tensor([1.0, -1.0, 2.0, 1.0, 1.0, 2.0, -2.0, 1.0])
    kept = {"2:8": [2, 5], "unstructured": [0, 2, 5, 6]}[pattern]
    assert sparsify(x, pattern=pattern).nonzero().flatten().tolist() == kept


def test_two_of_four_by_magnitude_is_sparsify_24() -> None:
    x = torch.randn(5, 16)
    assert torch.equal(sparsify(x), sparsify_24(x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("gradient", ["ste", "masked"])
def test_nan_and_infinity_stay_visible(pattern: Any, method: Any, gradient: Any) -> None:
    for bad in (math.nan, math.inf):
        for place in range(8):
            x = torch.arange(1.0, 9.0)
            x[place] = bad
            out = sparsify(x, pattern=pattern, method=method, gradient=gradient, key=3)
            if math.isnan(bad) or method not in ("first", "random"):
                assert not out.isfinite().all(), (bad, place)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("pattern", "method"), OTHERS)
@pytest.mark.parametrize("gradient", ["ste", "masked"])
def test_dtype_shape_and_never_too_many(pattern: Any, method: Any, dtype: torch.dtype, gradient: Any) -> None:
    k, m = KEPT[pattern]
    x = torch.randn(24, 64).to(dtype).t()  # not contiguous
    out = sparsify(x, pattern=pattern, method=method, gradient=gradient, key=1)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert ((out != 0).reshape(-1, m).sum(-1) <= k).all()
    assert sparsify(x[:0], pattern=pattern, method=method, gradient=gradient, key=1).shape == (0, 24)


# mvue


@pytest.mark.parametrize(
    ("group", "k"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2),
        ([0.5, -0.5, 0.5, 0.5], 2),
        ([100.0, -1.0, 2.0, 0.25], 2),
        ([0.0, 3.0, 0.0, -1.0], 2),
        ([0.0, 3.0, 1.0, -1.0], 2),
        ([0.0, 0.0, 0.0, 5.0], 2),
        ([0.0, 0.0, 0.0, 0.0], 2),
        ([1.0, 2.0, 3.0, -4.0], 1),
        ([1.0, 2.0, 3.0, 4.0], 3),
        ([9.0, 8.0, 0.1, -0.2, 0.3, 0.0, 7.0, 1.0], 2),
        ([float(i) for i in range(1, 13)], 6),
    ],
)
def test_mvue_is_unbiased_with_least_variance_exactly(group: list[float], k: int) -> None:
    """The choice is constant between the fractional parts of the running sums, so two integrals are finite sums."""
    x, chance = torch.tensor(group, dtype=torch.float64), chances(group, k)
    cuts = sorted({0.0, 1.0, *((1 - s) % 1 for s in itertools.accumulate(chance))})
    mean, square, width = torch.zeros_like(x), torch.zeros_like(x), 0.0
    for low, high in itertools.pairwise(cuts):
        if high - low < 1e-9:
            continue
        bits = torch.tensor([int((low + high) / 2 * 2**32)])
        chosen, factor = _sample(x, k, bits)
        assert chosen.sum() == min(k, (x != 0).sum())
        value = x * factor * chosen
        mean, square, width = (mean + value * (high - low), square + value**2 * (high - low), width + high - low)
    assert width == pytest.approx(1)
    torch.testing.assert_close(mean, x, rtol=1e-8, atol=1e-8)
    least = sum(v * v / p for v, p in zip(group, chance, strict=True) if p > 0)
    assert square.sum().item() == pytest.approx(least, rel=1e-8)


def test_no_other_probabilities_have_less_variance() -> None:
    group = [0.3, 2.0, 5.0, 1.0]
    best = sum(v * v / p for v, p in zip(group, chances(group, 2), strict=True))
    grid = [i / 20 for i in range(1, 21)]
    for p in itertools.product(grid, repeat=3):
        last = 2 - sum(p)
        if 0.01 < last <= 1:
            assert best <= sum(v * v / q for v, q in zip(group, (*p, last), strict=True)) + 1e-12


@pytest.mark.parametrize("pattern", PATTERNS)
def test_mvue_is_unbiased_in_a_large_sample(pattern: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(24) * torch.tensor([1.0, 0.0, 3.0, 0.1]).repeat(6)
    draws = sparsify(x.expand(40000, 24), pattern=pattern, method="mvue", key=11)
    error = (draws.mean(0) - x) / (draws.std(0) / 200).clamp(min=1e-6)
    assert error.abs().max() < 4.5


@pytest.mark.parametrize("pattern", PATTERNS)
def test_random_keeps_each_entry_equally_often(pattern: Any) -> None:
    k, m = KEPT[pattern]
    kept = sparsify(torch.ones(20000, 24), pattern=pattern, method="random", key=5)
    assert (kept.reshape(-1, m).sum(-1) == k).all()
    share = k / m
    deviation = (kept.mean(0) - share).abs() / math.sqrt(share * (1 - share) / 20000)
    assert deviation.max() < 4.5
    # entries of different groups and rows are unrelated
    other = sparsify(torch.ones(20000, 24), pattern=pattern, method="random", key=6)
    expected = 20000 * 24 * (share**2 + (1 - share) ** 2)
    assert ((kept == other).sum() - expected).abs() < 5 * math.sqrt(expected)


def test_random_bits_depend_on_key_and_place_alone() -> None:
    cpu = torch.device("cpu")
    bits = random_bits((1000, 8), 12, cpu)
    assert torch.equal(bits, random_bits((8000,), torch.tensor(12), cpu).reshape(1000, 8))
    assert not torch.equal(bits, random_bits((1000, 8), 13, cpu))
    assert 0 <= bits.min() < bits.max() < 2**32
    # golden: other numbers would end the exactness of resumed runs
    assert random_bits((3,), 12, cpu).tolist() == [3108722425, 1523988303, 1903090135]
    ones = torch.stack([(bits >> place) & 1 for place in range(32)]).double().mean((1, 2))
    assert (ones - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(8000)


def test_rows_share_their_draw_when_asked() -> None:
    x = torch.randn(1, 6, 16).expand(3, 6, 16)
    out = sparsify(x, method="random", key=1, same_rows=True)
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0, 0] == 0, out[0, 1] == 0)
    assert not torch.equal(*sparsify(x, method="random", key=1)[:2])


# gradients


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", ["magnitude", "soft_threshold", "random", "first"])
def test_masked_gradient_is_the_numerical_one(pattern: Any, method: Any) -> None:
    x = apart(2, 16)
    call = lambda x: sparsify(x, pattern=pattern, method=method, gradient="masked", key=9)  # noqa: E731
    assert torch.autograd.gradcheck(call, x)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masked_gradient_of_mvue_is_its_factor_and_the_identity_on_average(pattern: Any) -> None:
    x = apart(1, 16).detach().expand(20000, 16).requires_grad_()
    out = sparsify(x, pattern=pattern, method="mvue", gradient="masked", key=4)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, out.detach() / x.detach(), rtol=1e-6, atol=1e-9)
    error = (grad.mean(0) - 1) / (grad.std(0) / math.sqrt(20000)).clamp(min=1e-6)
    assert error.abs().max() < 4.5


@pytest.mark.parametrize(("pattern", "method"), OTHERS)
def test_straight_through_is_the_identity(pattern: Any, method: Any) -> None:
    x, weight = apart(4, 24), torch.randn(4, 24, dtype=torch.float64)
    out = sparsify(x, pattern=pattern, method=method, key=2)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(grad, weight)
    masked = sparsify(x, pattern=pattern, method=method, key=2, gradient="masked")
    assert torch.equal(out, masked)


def test_masked_gradients_are_finite_where_features_are_zero() -> None:
    x = torch.tensor([0.0, 0.0, 1e-40, 2.0, 0.0, 0.0, 0.0, 0.0], requires_grad=True)
    for method in METHODS:
        for key in range(20):
            out = sparsify(x, method=method, gradient="masked", key=key)
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert out.isfinite().all(), method
            assert grad.isfinite().all(), method


@pytest.mark.parametrize("method", STOCHASTIC)
def test_a_stochastic_method_needs_a_key(method: Any) -> None:
    with pytest.raises(ValueError, match=f"'{method}' is stochastic: give a key"):
        sparsify(torch.zeros(4), method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "4:8"}, "'4:8' is unknown: choose one of 2:4, 1:4"),
        ({"method": "topk"}, "'topk' is unknown: choose one of magnitude"),
        ({"pattern": "1:4", "gradient": "exact"}, "'exact' is unknown: choose ste or masked"),
        ({"pattern": "2:8", "shape": (2, 12)}, r"2:8 needs a last axis that 8 divides, not \(2, 12\)"),
        ({"pattern": "unstructured", "shape": (2, 7)}, "that 2 divides"),
        ({"pattern": "1:4", "shape": ()}, r"that 4 divides, not \(\)"),
        ({"pattern": "1:4", "dtype": torch.int32}, "not torch.int32"),
        ({"pattern": "1:4", "backend": "triton"}, "'triton' knows pattern 2:4 with method magnitude, not 1:4"),
        ({"method": "first", "backend": "cusparselt"}, "not 2:4 with first: choose auto or reference"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    x = torch.zeros(options.pop("shape", (2, 8)), dtype=options.pop("dtype", torch.float32))
    with pytest.raises(ValueError, match=message):
        sparsify(x, **options)


def test_width_multiples() -> None:
    assert [width_multiple(p) for p in PATTERNS] == [4, 4, 4, 8, 2]
