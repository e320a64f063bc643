"""The FFN through the sparse product: cuSPARSELt itself on a GPU, elsewhere a stand-in that reads the same form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ffn_inputs import error, inputs, opcheck, results
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops import backend as backends
from elas_lightning.ops import lowrank_ffn, pack_24, relu2_sparsify_24, sparsify_24, storage, unpack_24
from elas_lightning.ops.cusparselt import PLANS, Plan, PlanCache
from elas_lightning.ops.hardware_layout import FEATURES, ROWS, from_hardware, packed_shape, to_hardware
from elas_lightning.ops.kernels import hardware
from elas_lightning.ops.kernels.hardware import hidden_hardware, unpack_hardware
from elas_lightning.ops.kernels.tiles import Tiles, hidden_tiles

# (tokens, rank, d_ff, output rank): whole blocks, and odd everything
SHAPES = [(128, 32, 128, 32), (37, 24, 40, 20), (130, 70, 136, 40)]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Library:
    """cuSPARSELt as far as we use it: a packed form of its own, and a product that asks what the real one asks."""

    def __init__(self) -> None:
        self.compressed: dict[int, Tensor] = {}
        self.searches = 0
        self.other_layout = False
        self.wrong_plan = False

    def compress(self, hidden: Tensor) -> Tensor:
        assert hidden.is_contiguous()
        assert not [size for size in hidden.shape if size % 16]
        packed = hidden.new_zeros((hidden.shape[0], hidden.shape[1] * 9 // 16))
        self.compressed[packed.data_ptr()] = hidden.clone()
        self.alive = packed
        return packed

    def multiply(self, packed: Tensor, dense: Tensor, *, alg_id: int, split_k: int, split_k_mode: int) -> Tensor:
        assert (alg_id, split_k, split_k_mode) in ((0, 1, -1), (7, 1, -1))
        assert packed.is_contiguous()
        assert packed.dtype == dense.dtype
        assert dense.is_contiguous() or dense.t().is_contiguous()
        assert packed.shape[1] == dense.shape[0] * 9 // 16
        assert not [size for size in dense.shape if size % 16]
        hidden = self.compressed.get(packed.data_ptr())
        if hidden is None:
            values, meta = from_hardware(packed)
            hidden = unpack_24(values, meta.roll(1, 0) if self.other_layout else meta, backend="reference")
        product = (hidden.float() @ dense.float()).to(dense.dtype)
        return product.roll(1, 0) if self.wrong_plan and alg_id else product

    def mm_search(self, packed: Tensor, dense: Tensor, *options: Any) -> tuple[int, int, int, int]:
        assert options == (None, None, None, False)
        self.searches += 1
        return 7, 1, -1, 40


@pytest.fixture(autouse=True)
def library(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library | None]:
    PLANS.plans.clear()
    if device.type == "cuda":
        if not torch.backends.cusparselt.is_available():
            pytest.skip("this torch is built without cuSPARSELt")
        yield None
    else:
        library = Library()
        monkeypatch.setattr(backends, "_runs", lambda name, device: "named")
        monkeypatch.setattr(torch, "_cslt_compress", library.compress)
        monkeypatch.setattr(torch, "_cslt_sparse_mm", library.multiply)
        monkeypatch.setattr(torch._C, "_cusparselt", library, raising=False)
        yield library
    PLANS.plans.clear()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 16, 8, 1), (1200, 16, 264, 1)])
def test_the_kernel_writes_what_the_layout_says(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    tokens, rank, features, _ = shape
    z = torch.randint(-2, 3, (tokens, rank), device=device).to(dtype)
    up = torch.randint(-1, 2, (features, rank), device=device).to(dtype) / 16
    z[0, 0] = float("nan")
    packed = torch.full(packed_shape(tokens, features), float("nan"), dtype=dtype, device=device)
    hidden_hardware(z, up, packed)
    whole = z.new_zeros((packed.shape[0], packed.shape[1] * 16 // 9))
    whole[:tokens, :features] = relu2_sparsify_24((z.float() @ up.float().T).to(dtype), backend="reference")
    values, words = packed[:, :].view(-1).split((whole.numel() // 2, whole.numel() // 16))
    expected = to_hardware(*pack_24(whole, backend="reference")).view(-1)
    # which of NaN's bit patterns it is, is nobody's promise
    torch.testing.assert_close(values, expected[: values.numel()], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(words.view(torch.int16), expected[values.numel() :].view(torch.int16))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(128, 128), (37, 40), (200, 264), (1, 4)])
def test_the_kernel_reads_what_the_layout_says(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    tokens, features = shape
    packed_rows, packed_columns = packed_shape(tokens, features)
    # what fills up the blocks is not read: no zeros there
    whole = torch.randn(packed_rows, packed_columns * 16 // 9).to(device, dtype)
    packed = to_hardware(*pack_24(whole, backend="reference"))
    expected = sparsify_24(whole, backend="reference")[:tokens, :features]
    assert torch.equal(unpack_hardware(packed, tokens, features), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_tiles_divide_the_blocks(dtype: torch.dtype) -> None:
    tiles = hidden_tiles(dtype)
    assert ROWS % tiles.tokens == 0
    assert FEATURES // 4 % tiles.groups == 0


@pytest.mark.parametrize("tiles", [Tiles(256, 32, 64, 8, 3), Tiles(128, 64, 64, 8, 3)])
def test_tiles_that_stand_out_of_the_blocks_are_not_launched(
    tiles: Tiles, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "hidden_tiles", lambda dtype: tiles)
    z, up, _, _ = inputs((20, 16, 40, 8), torch.float16, device)
    with pytest.raises(AssertionError):
        hidden_hardware(z, up, z.new_empty(packed_shape(20, 40)))


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, torch.float16) for shape in SHAPES), (SHAPES[1], torch.bfloat16)]
)
@pytest.mark.parametrize(
    ("backend", "kept"), [("cusparselt", "packed"), ("cusparselt", "recompute"), ("cusparselt_compress", "recompute")]
)
@pytest.mark.parametrize("gradient", ["ste", "masked"])
def test_agrees_with_the_reference(
    gradient: Any, backend: str, kept: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    tensors = inputs(shape, dtype, device)
    actual = results(tensors, gradient=gradient, backend=backend, storage=kept)
    expected = results(tensors, gradient=gradient, backend="reference")
    for mine, theirs in zip(actual, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert error(mine, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("kept", ["packed", "recompute"])
def test_chunks_and_leading_dimensions(kept: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs((300, 16, 40, 8), torch.float16, device)
    whole = results(tensors, backend="cusparselt", storage=kept)
    monkeypatch.setattr(storage, "CHUNK_TOKENS", 128)
    z, up, down, grad = tensors
    shaped = results((z.view(2, 150, 16), up, down, grad.view(2, 150, 8)), backend="cusparselt", storage=kept)
    for mine, theirs in zip(shaped, whole, strict=True):
        assert error(mine.reshape(theirs.shape), theirs) < 2e-3
    assert lowrank_ffn(z[:0], up, down, backend="cusparselt", storage=kept).shape == (0, 8)


def test_row_major_down_and_nan_in_its_own_row(device: torch.device) -> None:
    z, up, down, _ = inputs((5, 16, 40, 8), torch.float16, device)
    z[1, 0] = float("nan")
    out = lowrank_ffn(z, up, down.contiguous(), backend="cusparselt", storage="recompute")
    assert out[1].isnan().all()
    assert out[[0, 2, 3, 4]].isfinite().all()


def test_the_dense_warmup_runs_without_the_sparse_product(device: torch.device) -> None:
    tensors = inputs((20, 16, 40, 8), torch.float16, device)
    options: dict[str, Any] = {"sparsity": None, "storage": "recompute"}
    actual = results(tensors, **options, backend="cusparselt")
    for mine, theirs in zip(actual, results(tensors, **options, backend="reference"), strict=True):
        assert error(mine, theirs) < 2e-3
    assert not PLANS.plans


def test_without_gradients_any_storage_will_do(device: torch.device) -> None:
    z, up, down, _ = inputs((20, 16, 40, 8), torch.float16, device)
    for backend in ("cusparselt", "cusparselt_compress"):
        out = lowrank_ffn(z, up, down, backend=backend, storage="dense")
        assert error(out, lowrank_ffn(z, up, down, backend="reference")) < 2e-3


def test_autocast(device: torch.device) -> None:
    z, up, down, _ = (t.float().requires_grad_() for t in inputs((20, 16, 40, 8), torch.float32, device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = lowrank_ffn(z, up, down, backend="cusparselt", storage="packed")
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.sum(), (z, up, down))
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_a_plan_is_searched_once_for_each_problem(device: torch.device, library: Library | None) -> None:
    z, up, down, _ = inputs((200, 16, 40, 8), torch.float16, device)
    for rows in (200, 129, 256, 5):  # 256, 256, 256 and 128 in whole blocks
        lowrank_ffn(torch.cat((z, z))[:rows], up, down, backend="cusparselt", storage="recompute")
    assert len(PLANS.plans) == 2
    assert library is None or library.searches == 2


def test_the_cache_of_plans_forgets_what_was_used_longest_ago() -> None:
    cache = PlanCache(limit=2)
    problems: list[Any] = ["a", "b", "c"]
    found = [cache.get(problem, lambda: Plan(len(cache.plans), 1, -1)) for problem in problems[:2]]
    assert cache.get(problems[0], pytest.fail) == found[0]
    cache.get(problems[2], lambda: Plan(9, 1, -1))
    assert list(cache.plans) == ["a", "c"]


def test_another_layout_is_refused_before_it_is_used(device: torch.device, library: Library | None) -> None:
    if library is None:
        pytest.skip("needs a stand-in that reads another layout: runs without a GPU")
    z, up, down, _ = inputs((20, 16, 40, 8), torch.float16, device)
    library.other_layout = True
    for _ in range(2):
        with pytest.raises(UserError, match=r"otherwise than our kernel \(their products differ\); choose cusp"):
            lowrank_ffn(z, up, down, backend="cusparselt", storage="recompute")
    assert not PLANS.plans
    assert lowrank_ffn(z, up, down, backend="cusparselt_compress").isfinite().all()


def test_a_wrong_algorithm_is_refused(device: torch.device, library: Library | None) -> None:
    if library is None:
        pytest.skip("needs a stand-in with a wrong algorithm: runs without a GPU")
    z, up, down, _ = inputs((20, 16, 40, 8), torch.float16, device)
    library.wrong_plan = True
    with pytest.raises(UserError, match=r"only under Plan\(alg_id=7"):
        lowrank_ffn(z, up, down, backend="cusparselt", storage="recompute")


def test_another_size_of_the_packed_form_is_refused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    z, up, down, _ = inputs((20, 16, 40, 8), torch.float16, device)
    monkeypatch.setattr(torch, "_cslt_compress", lambda hidden: hidden)
    with pytest.raises(UserError, match="9216 words, it has 16384"):
        lowrank_ffn(z, up, down, backend="cusparselt", storage="recompute")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cusparselt"}, "no dense hidden features .* ffn_storage recompute or packed"),
        ({"backend": "cusparselt_compress"}, "no dense hidden features .* ffn_storage recompute$"),
        ({"backend": "cusparselt_compress", "storage": "packed"}, "packs in a form that only cuSPARSELt"),
        ({"backend": "cusparselt", "activation": "gelu"}, "is for activation relu2, not 'gelu': choose triton"),
    ],
)
def test_refuses_what_it_cannot_keep_or_compute(options: dict[str, Any], message: str, device: torch.device) -> None:
    with pytest.raises(UserError, match=message):
        results(inputs((20, 16, 40, 8), torch.float16, device), **options)


def test_refuses_float32(device: torch.device) -> None:
    with pytest.raises(UserError, match=r"float16 and bfloat16, not torch\.float32: choose triton"):
        results(inputs((20, 16, 40, 8), torch.float32, device), backend="cusparselt", storage="recompute")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("backend", "packed"), [("cusparselt", True), ("cusparselt", False), ("cusparselt_compress", False)]
)
def test_torch_sees_through(backend: str, packed: bool, device: torch.device) -> None:
    opcheck(inputs((20, 16, 40, 8), torch.float16, device), True, True, packed, backend)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_into_one_graph(device: torch.device) -> None:
    options: dict[str, Any] = {"backend": "cusparselt", "storage": "packed"}
    call = torch.compile(lambda z, up, down: lowrank_ffn(z, up, down, **options), fullgraph=True, backend="aot_eager")
    z, up, down, _ = inputs((20, 16, 40, 8), torch.float16, device)
    out = call(z.requires_grad_(), up.requires_grad_(), down)
    torch.testing.assert_close(out, lowrank_ffn(z, up, down, **options))
    out.sum().backward()
