"""The decoding kernel against the plain composition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elas_lightning.ops import lowrank_ffn, lowrank_ffn_decode
from elas_lightning.ops.decode import decode_ffn

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 32, 128, 64), (3, 20, 40, 150), (16, 5, 200, 9)])
@pytest.mark.parametrize("sparsity", ["2:4", None])
@pytest.mark.parametrize("by_rows", [False, True])
def test_agrees_with_the_reference(
    by_rows: bool, sparsity: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    tokens, rank, features, out_rank = shape
    z = torch.randn(tokens, rank, device=device).to(dtype)
    up = (torch.randn(features, rank, device=device) / rank**0.5).to(dtype)
    down = (torch.randn(out_rank, features, device=device) / features**0.5).to(dtype).t()
    rows = down.contiguous() if by_rows else None
    actual = lowrank_ffn_decode(z, up, down, sparsity=sparsity, backend="triton", down_rows=rows)
    expected = lowrank_ffn(z, up, down, sparsity=sparsity, backend="reference").double()
    assert actual.dtype == dtype
    assert float((actual.double() - expected).norm() / expected.norm()) < TOLERANCE[dtype]


@pytest.mark.parametrize("features", [3, 50, 127])
@pytest.mark.parametrize("by_rows", [False, True])
def test_a_dense_width_need_not_be_whole_groups(by_rows: bool, features: int, device: torch.device) -> None:
    z, up = torch.randn(3, 20, device=device), torch.randn(features, 20, device=device)
    down = torch.randn(30, features, device=device).t()
    rows = down.contiguous() if by_rows else None
    actual = lowrank_ffn_decode(z, up, down, sparsity=None, backend="triton", down_rows=rows)
    expected = lowrank_ffn(z, up, down, sparsity=None, backend="reference")
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-3)


def test_reads_only_the_rows_it_needs(device: torch.device) -> None:
    z, up = torch.randint(1, 3, (2, 8), device=device).float(), torch.randn(64, 8, device=device)
    up[torch.rand(64, device=device) > 0.1] = -1
    down = torch.randn(64, 10, device=device)
    needed = (lowrank_ffn(z, up, torch.eye(64, device=device), backend="reference") != 0).any(0)
    rows = torch.where(needed[:, None], down, torch.nan)
    actual = lowrank_ffn_decode(z, up, rows, backend="triton")
    torch.testing.assert_close(actual, lowrank_ffn(z, up, down, backend="reference"), rtol=1e-5, atol=1e-5)


def test_nan_stays_visible_and_strides_are_any(device: torch.device) -> None:
    z, up = torch.randn(2, 8, device=device), torch.randn(40, 8, device=device)
    z[1, 3] = torch.nan
    down = torch.randn(40, 20, device=device)[:, ::2]
    out = lowrank_ffn_decode(z, up, down, backend="triton")
    expected = lowrank_ffn(z[:1], up, down, backend="reference")[0]
    torch.testing.assert_close(out[0], expected, rtol=1e-5, atol=1e-4)
    assert out[1].isnan().all()
    assert lowrank_ffn_decode(z[:0], up, down, backend="triton").shape == (0, 10)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_sees_through(device: torch.device) -> None:
    z, up, down = (torch.randn(size, device=device) for size in ((2, 8), (40, 8), (40, 10)))
    torch.library.opcheck(decode_ffn, (z, up, down, down, True, True))
