"""Packing: exact inverse of the selection, and the documented bit layout."""

from __future__ import annotations

import math

import pytest
import torch

from elas_lightning.ops import pack_24, sparsify_24, unpack_24

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(8,), (3, 16), (2, 3, 24), (0, 8), (2, 0)])
def test_round_trip(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype)
    values, meta = pack_24(x)
    assert values.shape == (*shape[:-1], shape[-1] // 2)
    assert meta.shape == (*shape[:-1], shape[-1] // 8)
    assert (values.dtype, meta.dtype) == (dtype, torch.uint8)
    unpacked = unpack_24(values, meta)
    assert unpacked.dtype == dtype
    integer = BITS[x.element_size()]
    assert torch.equal(unpacked.view(integer), sparsify_24(x).view(integer))


def test_round_trip_of_special_values_in_every_order() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan])
    x = torch.cartesian_prod(values, values, values, values)
    x = torch.cat((x, x.flip(0)), 1)
    assert torch.equal(unpack_24(*pack_24(x)).view(torch.int32), sparsify_24(x).view(torch.int32))


def test_packs_a_transposed_view() -> None:
    x = torch.randn(16, 5).t()
    assert torch.equal(unpack_24(*pack_24(x)), sparsify_24(x))


def test_layout() -> None:
    # kept: indices 1 and 3 of the first group, 0 and 2 of the second
    values, meta = pack_24(torch.tensor([0.0, 5.0, 1.0, -6.0, 7.0, 0.0, 8.0, 0.0]))
    assert values.tolist() == [5.0, -6.0, 7.0, 8.0]
    first, second = 1 | 3 << 2, 0 | 2 << 2
    assert meta.tolist() == [first | second << 4]


def test_gradient_reaches_kept_entries() -> None:
    x = torch.tensor([0.5, 5.0, 1.0, -6.0, 7.0, 0.1, 8.0, 0.2], requires_grad=True)
    pack_24(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("size", [4, 12, 7])
def test_pack_refuses_half_a_byte(size: int) -> None:
    with pytest.raises(ValueError, match=rf"shape \(2, {size}\) has size {size} .* multiple of 8"):
        pack_24(torch.zeros(2, size))


@pytest.mark.parametrize(
    ("values", "meta", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.int32), "must be uint8"),
        (torch.zeros(2, 4), torch.zeros(2, 2, dtype=torch.uint8), r"values \(2, 4\) and meta \(2, 2\)"),
        (torch.zeros(3, 4), torch.zeros(2, 1, dtype=torch.uint8), r"values \(3, 4\) and meta \(2, 1\)"),
        (torch.zeros(()), torch.zeros((), dtype=torch.uint8), r"values \(\) and meta \(\)"),
    ],
)
def test_unpack_refuses_what_does_not_belong_together(values, meta, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_24(values, meta)
