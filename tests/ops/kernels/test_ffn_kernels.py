"""The fused low-rank FFN and its parts against the plain composition."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from ffn_inputs import error, inputs, results
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops import lowrank_ffn, pack_24, relu2_sparsify_24
from elas_lightning.ops.kernels import ffn, tiles
from elas_lightning.ops.kernels.products import own_tile
from elas_lightning.ops.kernels.selection import join_members, member_major, split_members
from elas_lightning.ops.reference import keep_mask_24

# (tokens, rank, d_ff, output rank): whole tiles, odd everything, ranks of one and beyond the fused kernel
SHAPES = [
    (64, 32, 128, 32),
    (37, 24, 40, 20),
    (130, 1, 72, 3),
    (1, 16, 8, 130),
    (33, 140, 264, 129),
    (40, 272, 48, 272),
]
# float16 and bfloat16: the hidden features are rounded to the dtype, and the interpreter truncates to bfloat16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FFNS = [("2:4", "ste"), ("2:4", "masked"), (None, "ste")]


def same(actual: Tensor, expected: Tensor) -> None:
    """Equal, NaN to NaN."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sparsity", "gradient"), FFNS)
@pytest.mark.parametrize("storage", ["dense", "packed", "recompute"])
def test_agrees_with_the_reference(
    storage: Any, sparsity: Any, gradient: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if storage == "packed" and sparsity is None:
        with pytest.raises(ValueError, match="needs sparsity"):
            results(inputs(shape, dtype, device), sparsity=sparsity, backend="triton", storage=storage)
        return
    tensors = inputs(shape, dtype, device)
    options = {"sparsity": sparsity, "gradient": gradient}
    actual = results(tensors, **options, backend="triton", storage=storage)
    expected = results(tensors, **options, backend="reference")
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert error(mine, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(37, 24, 41, 20), (9, 16, 3, 8), (40, 272, 50, 272), (33, 140, 263, 129)])
def test_a_dense_width_need_not_be_whole_groups(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    tensors = inputs(shape, dtype, device)
    actual = results(tensors, sparsity=None, backend="triton", storage="recompute")
    expected = results(tensors, sparsity=None, backend="reference")
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.shape == theirs.shape
        assert error(mine, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("sparsity", ["2:4", None])
@pytest.mark.parametrize("shape", [(33, 16, 264, 16), (9, 300, 24, 8), (300, 8, 136, 8)])
def test_exact_where_products_are_exact(sparsity: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Integers: no rounding anywhere, so ties are ties and the choice itself must agree."""
    tokens, rank, features, out_rank = shape
    z, up, down, grad = (
        torch.randint(-1, 2, size, device=device).float()
        for size in ((tokens, rank), (features, rank), (features, out_rank), (tokens, out_rank))
    )
    for gradient in ("ste", "masked"):
        options = {"sparsity": sparsity, "gradient": gradient}
        actual = results((z, up, down, grad), **options, backend="triton", storage="recompute")
        expected = results((z, up, down, grad), **options, backend="reference")
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_features_leave_the_product_packed(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    tokens, rank, features, _ = shape
    z = torch.randint(-2, 3, (tokens, rank), device=device).to(dtype)
    up = torch.randint(-1, 2, (features, rank), device=device).to(dtype) / 16
    values = z.new_empty((tokens, features // 2))
    meta = z.new_empty((tokens, features // 8), dtype=torch.uint8)
    ffn.hidden_packed(z, up, values, meta)
    expected_values, expected_meta = pack_24(relu2_sparsify_24(z @ up.T))
    assert torch.equal(meta, expected_meta)
    assert torch.equal(values, expected_values)


# infinities meet the zeros that fill up a tile, and the interpreter's numpy says so
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_special_pre_activations_in_every_order(dtype: torch.dtype, device: torch.device) -> None:
    """``z`` is one, so that ``up`` itself is the pre-activation; what is kept, where and how it is packed is exact."""
    values = torch.tensor([-math.inf, 2.0, math.inf, math.nan], dtype=dtype, device=device)
    x = torch.cartesian_prod(values, values, values, values).view(1, -1)
    one, up = torch.ones(1, 1, dtype=dtype, device=device), x.t().contiguous()
    expected = relu2_sparsify_24(x, backend="reference")
    same(ffn.hidden(one, up, True), expected)
    same(ffn.hidden(one, up, False), x.relu() * x.relu())
    kept, meta = x.new_empty((1, x.shape[1] // 2)), x.new_empty((1, x.shape[1] // 8), dtype=torch.uint8)
    ffn.hidden_packed(one, up, kept, meta)
    expected_kept, expected_meta = pack_24(expected, backend="reference")
    assert torch.equal(meta, expected_meta)
    same(kept, expected_kept)
    hidden, grad = ffn.hidden_backward(one, up, torch.ones_like(up), one, True, True)
    same(hidden, expected)
    same(grad, torch.where(keep_mask_24(x.relu() * x.relu(), 1), 2 * x.relu(), 0))


@triton.jit
def places_kernel(order_ptr, members_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which program has a tile, and the members of the groups 3 to 10 of features that stand for themselves."""
    row, column = own_tile(ROWS, COLUMNS)
    tl.store(order_ptr + row * COLUMNS + column, tl.program_id(0))
    x = member_major(3, 8)[None, :] + 100 * tl.arange(0, 2)[:, None]
    a, b, c, d = split_members(x)
    place = 4 * tl.arange(0, 8)[None, :] + 32 * tl.arange(0, 2)[:, None]
    tl.store(members_ptr + place, a)
    tl.store(members_ptr + place + 1, b)
    tl.store(members_ptr + place + 2, c)
    tl.store(members_ptr + place + 3, d)
    back = tl.arange(0, 32)[None, :] + 32 * tl.arange(0, 2)[:, None]
    tl.store(members_ptr + 64 + back, join_members(a, b, c, d) - x)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (8, 2), (19, 4)])
def test_every_tile_is_one_programs_and_members_are_those_of_groups(
    rows: int, columns: int, device: torch.device
) -> None:
    order = torch.full((rows, columns), -1, dtype=torch.int32, device=device)
    members = torch.full((4, 32), -1, dtype=torch.int32, device=device)
    places_kernel[(rows * columns,)](order, members, ROWS=rows, COLUMNS=columns)
    assert order.flatten().sort().values.tolist() == list(range(rows * columns))
    # the first eight rows come before the ninth, and column by column
    assert order[: min(rows, 8), 0].tolist() == list(range(min(rows, 8)))
    assert members[0].tolist() == list(range(12, 44))
    assert members[1].tolist() == list(range(112, 144))
    assert not members[2:].any()


@pytest.mark.parametrize("rank", [16, 300])
def test_nan_stays_visible_in_its_own_row(rank: int, device: torch.device) -> None:
    z, up, down, _ = inputs((5, rank, 16, rank), torch.float32, device)
    z[1, 0] = float("nan")
    out = lowrank_ffn(z, up, down, backend="triton", storage="recompute")
    assert out[1].isnan().all()
    assert out[[0, 2, 3, 4]].isfinite().all()


def test_both_ways_of_forward_agree(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    z, up, down, _ = inputs((20, 32, 64, 32), torch.float32, device)
    down = down.contiguous()
    fused = ffn.forward(z, up, down, True)
    monkeypatch.setattr(ffn, "largest_fused_rank", lambda dtype, shared_bytes: 0)
    assert error(ffn.forward(z, up, down, True), fused) < 1e-6


def test_leading_dimensions_and_no_tokens_at_all(device: torch.device) -> None:
    z, up, down, _ = inputs((6, 16, 32, 8), torch.float32, device)
    flat = lowrank_ffn(z, up, down, backend="triton", storage="recompute")
    shaped = lowrank_ffn(z.view(2, 3, 16), up, down, backend="triton", storage="recompute")
    assert torch.equal(shaped, flat.view(2, 3, 8))
    assert lowrank_ffn(z[:0], up, down, backend="triton", storage="recompute").shape == (0, 8)


def test_refuses_float64(device: torch.device) -> None:
    tensors = [t.double() for t in inputs((6, 16, 32, 8), torch.float32, device)[:3]]
    for storage in ("dense", "recompute"):
        with pytest.raises(UserError, match=r"not torch\.float64"):
            lowrank_ffn(*tensors, backend="triton", storage=storage)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kib", "rank"), [(99, 128), (163, 128), (227, 256)])
def test_the_fused_rank_follows_from_shared_memory(kib: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(shared_memory_per_block_optin=kib * 2**10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    shared = tiles.shared_memory(torch.device("cuda"))
    assert tiles.largest_fused_rank(torch.bfloat16, shared) == rank
    assert tiles.largest_fused_rank(torch.float32, shared) == 64
