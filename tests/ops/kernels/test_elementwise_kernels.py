"""Selection and packing by kernels: bit for bit the reference, on ties, zeros and what is not finite, too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops import pack_24, relu2_sparsify_24, sparsify_24, unpack_24
from elas_lightning.ops.kernels.packing import gather, pack, unpack
from elas_lightning.ops.kernels.sparsify import sparsify, sparsify_backward

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# around one program's block of 4096, with rows that end inside it
SHAPES = [(8,), (3, 16), (2, 3, 24), (5, 1000), (4096,), (4104,), (0, 8), (2, 0)]


def same(actual: Tensor, expected: Tensor) -> None:
    """Equal bit for bit, NaN to NaN: which of its bit patterns is nobody's promise."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[actual.element_size()]
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if actual.is_floating_point():
        assert torch.equal(actual.isnan(), expected.isnan())
        actual, expected = (actual.nan_to_num(0.0, math.inf, -math.inf), expected.nan_to_num(0.0, math.inf, -math.inf))
    assert torch.equal(actual.view(integer), expected.view(integer))


def full_of_ties(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Small integers, whose squares are exact in every dtype, of both signs."""
    return torch.randint(-3, 4, shape, device=device).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fill", [full_of_ties, lambda *s, dtype, device: torch.randn(s, device=device).to(dtype)])
def test_selects_as_the_reference(fill: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = fill(*shape, dtype=dtype, device=device)
    same(sparsify_24(x, backend="triton"), sparsify_24(x, backend="reference"))
    for actual, expected in zip(pack_24(x, backend="triton"), pack_24(x, backend="reference"), strict=True):
        same(actual, expected)
    same(unpack_24(*pack_24(x), backend="triton"), unpack_24(*pack_24(x), backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_squares_and_selects_as_the_reference(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = full_of_ties(*shape, dtype=dtype, device=device)
    same(relu2_sparsify_24(x, backend="triton"), relu2_sparsify_24(x, backend="reference"))
    if dtype != torch.bfloat16 or device.type == "cuda":  # the interpreter truncates to bfloat16, hardware rounds
        x = torch.randn(shape, device=device).to(dtype)
        same(relu2_sparsify_24(x, backend="triton"), relu2_sparsify_24(x, backend="reference"))


# 256² is beyond float16, and the interpreter's numpy says so
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [sparsify_24, relu2_sparsify_24])
def test_special_values_in_every_order(op: Any, dtype: torch.dtype, device: torch.device) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 256.0, math.inf, -math.inf, math.nan], dtype=dtype, device=device)
    x = torch.cartesian_prod(values, values, values, values)
    same(op(x, backend="triton"), op(x, backend="reference"))
    pairs = torch.cat((x, x.flip(0)), 1)
    for actual, expected in zip(pack_24(pairs, backend="triton"), pack_24(pairs), strict=True):
        same(actual, expected)


@pytest.mark.parametrize("op", [sparsify_24, relu2_sparsify_24])
@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(op: Any, gradient: Any, dtype: torch.dtype, device: torch.device) -> None:
    grads = []
    for backend in ("triton", "reference"):
        torch.manual_seed(1)
        x = full_of_ties(3, 40, dtype=dtype, device=device).requires_grad_()
        upstream = full_of_ties(3, 40, dtype=dtype, device=device)
        grads += torch.autograd.grad(op(x, gradient=gradient, backend=backend), x, upstream)
    # a product with a dropped entry's sign may leave a negative zero
    assert torch.equal(*grads)


def test_pack_and_unpack_carry_gradients(device: torch.device) -> None:
    grads = []
    for backend in ("triton", "reference"):
        torch.manual_seed(1)
        x = torch.randn(3, 40, device=device, requires_grad=True)
        values, meta = pack_24(x, backend=backend)
        dense = unpack_24(values, meta, backend=backend)
        grads += torch.autograd.grad((dense * torch.arange(40, device=device)).sum(), x)
    assert torch.equal(*grads)


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_any_axis_and_any_strides(dim: int, device: torch.device) -> None:
    x = torch.randn(16, 8, 12, device=device).transpose(0, 2)
    same(sparsify_24(x, dim, backend="triton"), sparsify_24(x, dim, backend="reference"))
    same(pack_24(x.mT, backend="triton")[0], pack_24(x.mT)[0])


def test_refuses_float64(device: torch.device) -> None:
    x = torch.randn(8, dtype=torch.float64, device=device)
    for call in (sparsify_24, relu2_sparsify_24, pack_24):
        with pytest.raises(UserError, match=r"not torch\.float64: choose reference"):
            call(x, backend="triton")  # type: ignore[operator]


# opcheck's own fake tensors warn of the storage they read
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_sees_through(device: torch.device) -> None:
    x = torch.randn(3, 16, device=device, requires_grad=True)
    values, meta = pack_24(x.detach(), backend="triton")
    for relu2 in (False, True):
        for masked in (False, True):
            torch.library.opcheck(sparsify, (x, relu2, masked))
            torch.library.opcheck(sparsify_backward, (x.detach(), x.detach(), relu2, masked))
    torch.library.opcheck(pack, (x,))
    torch.library.opcheck(unpack, (values.requires_grad_(), meta))
    torch.library.opcheck(gather, (x, meta))
