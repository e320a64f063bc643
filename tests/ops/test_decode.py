"""Decoding agrees with the ordinary op, whichever rows it skips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops import decode, lowrank_ffn, lowrank_ffn_decode
from elas_lightning.ops.decode import DECODE_TOKENS, decode_ffn, decode_pays


def tensors(tokens: int, live: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """z, up, and down as the transposed view that the model passes; most tokens leave most features at zero."""
    torch.manual_seed(0)
    z, up = torch.rand(tokens, 12, dtype=dtype), torch.randn(64, 12, dtype=dtype)
    off = torch.rand(64) > live
    up[off] = -up[off].abs()
    return z, up, torch.randn(10, 64, dtype=dtype).t()


@pytest.mark.parametrize("sparsity", ["2:4", None])
@pytest.mark.parametrize("tokens", [0, 1, 3, DECODE_TOKENS])
@pytest.mark.parametrize("live", [1.0, 0.2, 0.0])
@pytest.mark.parametrize("form", ["view", "rows", "copy"])
def test_agrees_with_the_ordinary_op(form: str, live: float, tokens: int, sparsity: Any) -> None:
    z, up, down = tensors(tokens, live)
    given = down.contiguous() if form == "rows" else down
    rows = down.contiguous() if form == "copy" else None
    actual = lowrank_ffn_decode(z, up, given, sparsity=sparsity, down_rows=rows)
    torch.testing.assert_close(
        actual, lowrank_ffn(z, up, down, sparsity=sparsity, backend="reference"), rtol=1e-12, atol=1e-12
    )


def test_reads_only_the_rows_it_needs() -> None:
    z, up, down = tensors(1, 0.1)
    needed = lowrank_ffn(z, up, torch.eye(64, dtype=z.dtype)).squeeze(0) != 0
    assert 0 < needed.sum() < 13
    rows = torch.where(needed[:, None], down, torch.nan).contiguous()
    torch.testing.assert_close(lowrank_ffn_decode(z, up, down, down_rows=rows), lowrank_ffn(z, up, down))


def test_nan_stays_visible() -> None:
    z, up, down = tensors(2, 0.1)
    z[1, 0] = torch.nan
    out = lowrank_ffn_decode(z, up, down.contiguous())
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_autocast_and_leading_dimensions() -> None:
    z, up, down = tensors(6, 0.2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = lowrank_ffn_decode(z.view(2, 3, 12), up, down, down_rows=down.contiguous())
    assert (out.dtype, out.shape) == (torch.bfloat16, (2, 3, 10))
    torch.testing.assert_close(out.float().view(6, 10), lowrank_ffn(z, up, down), rtol=3e-2, atol=3e-2)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("sparse", [False, True])
def test_torch_sees_through(sparse: bool) -> None:
    z, up, down = tensors(2, 0.2)
    torch.library.opcheck(decode_ffn, (z.view(1, 2, 12), up, down.contiguous(), down, sparse, False))


def test_when_it_pays() -> None:
    small, large = torch.empty(8, 8), torch.empty(2**12, 2**10, device="cpu")
    assert [decode_pays(small, name) for name in ("auto", "reference", "triton")] == [False, False, True]
    assert decode_pays(large, "auto")
    assert not decode_pays(large.to("meta"), "auto")


def test_counting_is_left_out_where_all_rows_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    z, up, down = tensors(1, 1.0)
    monkeypatch.setattr(decode, "_GATHER_COST", 0)
    torch.testing.assert_close(lowrank_ffn_decode(z, up, down.contiguous()), lowrank_ffn(z, up, down))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(DECODE_TOKENS + 1, 12)}, "at most 16 tokens, not 17: use lowrank_ffn"),
        ({"z": torch.zeros(1, 11)}, r"do not fit: they must be \(..., r\)"),
        ({"down_rows": torch.zeros(10, 64).t()}, r"must be contiguous and \(64, 10\) as down is"),
        ({"down_rows": torch.zeros(64, 9)}, r"must be contiguous and \(64, 10\) as down is, not \(64, 9\)"),
        ({"backend": "cuda"}, "is unknown"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    z, up, down = tensors(1, 1.0, torch.float32)
    arguments: dict[str, Any] = {"z": z, "up": up, "down": down, **change}
    with pytest.raises(ValueError, match=message):
        lowrank_ffn_decode(arguments.pop("z"), arguments.pop("up"), arguments.pop("down"), **arguments)


def test_kernel_refuses_float64() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")
    if torch.cuda.is_available():
        pytest.skip("the refusal is the same on any device: runs where Triton's interpreter does")
    with pytest.raises(UserError, match=r"not torch\.float64"):
        lowrank_ffn_decode(*tensors(1, 1.0), backend="triton")
