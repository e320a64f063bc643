"""The FFN by Hopper's kernels: on such a GPU, or on the machine of ``emulation.hpp``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulation import EXTREMES, Emulator, install
from ffn_inputs import error, inputs, opcheck, results

from elas_lightning.errors import UserError
from elas_lightning.ops import lowrank_ffn, storage
from elas_lightning.ops.hopper import steps
from elas_lightning.ops.hopper.compiler import Source

# (tokens, rank, d_ff, output rank): whole blocks, odd everything, and what the other kernels are for
SHAPES = [(256, 128, 256, 128), (37, 24, 44, 20), (300, 200, 528, 256), (200, 320, 272, 64), (130, 576, 136, 600)]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def emulator(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Emulator | None:
    if device.type == "cpu":
        return install(monkeypatch)
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("runs on compute capability 9.0, or where there is no GPU")
    return None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("gradient", "dtype"), [("ste", torch.float16), ("masked", torch.bfloat16)])
@pytest.mark.parametrize("keeps", ["recompute", "dense"])
def test_agrees_with_the_reference(
    keeps: Any,
    gradient: Any,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device,
    emulator: Emulator | None,
) -> None:
    tensors = inputs(shape, dtype, device)
    expected = results(tensors, gradient=gradient, backend="reference")
    for late in EXTREMES if emulator else EXTREMES[:1]:
        if emulator is not None:
            emulator.late = late
        actual = results(tensors, gradient=gradient, backend="hopper", storage=keeps)
        for mine, theirs in zip(actual, expected, strict=True):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            assert error(mine, theirs) < TOLERANCE[dtype]
    if emulator is not None:
        rank = max(shape[1], shape[3])
        packs = "hidden" if shape[1] <= 512 else "hidden_streamed"
        expected_kernels = ["fused", "backward"] if rank <= 256 else [packs, "multiply", "backward_streamed"]
        if keeps == "dense":
            last = "backward_kept" if shape[3] <= 512 else "backward_streamed"
            expected_kernels = [packs, "multiply", last]
        assert set(emulator.ran) == set(expected_kernels)


@pytest.mark.parametrize("shape", SHAPES)
def test_ties_are_decided_as_the_reference_does(shape: tuple[int, ...], device: torch.device) -> None:
    tokens, rank, features, out_rank = shape
    # small integers: every product is exact, whatever its order, and most groups have ties
    z = torch.randint(-2, 3, (tokens, rank), device=device).half()
    up = torch.zeros(features, rank, device=device).half()
    up[:, :4] = torch.randint(-1, 2, (features, 4), device=device).half()
    down = torch.eye(features, device=device)[:, :out_rank].half()
    out = lowrank_ffn(z, up, down, backend="hopper", storage="recompute")
    assert torch.equal(out, lowrank_ffn(z, up, down, backend="reference"))


@pytest.mark.parametrize("keeps", ["recompute", "dense"])
def test_one_output_and_no_tokens(keeps: Any, device: torch.device) -> None:
    options: dict[str, Any] = {"backend": "hopper", "storage": keeps}
    for shape in ((20, 16, 40, 1), (1, 1, 24, 1)):
        tensors = inputs(shape, torch.float16, device)
        for mine, theirs in zip(results(tensors, **options), results(tensors, backend="reference"), strict=True):
            assert error(mine, theirs) < 2e-3
    nothing = inputs((0, 16, 40, 8), torch.float16, device)
    out, grad_z, grad_up, grad_down = results(nothing, **options)
    assert (out.shape, grad_z.shape) == ((0, 8), (0, 16))
    assert not grad_up.any()
    assert not grad_down.any()


@pytest.mark.parametrize("keeps", ["recompute", "dense"])
@pytest.mark.parametrize("place", range(4))
def test_what_lies_anywhere_in_memory(place: int, keeps: Any, device: torch.device) -> None:
    """A bulk copy takes addresses that 16 divides; a part of a larger tensor need not begin at one."""
    tensors = list(inputs((20, 16, 48, 8), torch.float16, device))
    expected = results(tuple(tensors), backend="hopper", storage=keeps)
    moved = tensors[place].contiguous()
    inside = torch.cat((moved.new_zeros(1), moved.flatten()))[1:].view(moved.shape)
    tensors[place] = inside
    for mine, theirs in zip(results(tuple(tensors), backend="hopper", storage=keeps), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_leading_dimensions_and_contiguous_down(device: torch.device) -> None:
    z, up, down, _ = inputs((40, 32, 64, 16), torch.float16, device)
    flat = lowrank_ffn(z, up, down, backend="hopper", storage="recompute")
    shaped = lowrank_ffn(z.view(2, 20, 32), up, down.contiguous(), backend="hopper", storage="recompute")
    assert torch.equal(shaped.view(40, 16), flat)


def test_nan_stays_in_its_row_and_every_row_sees_a_nan_weight(device: torch.device) -> None:
    for rank in (64, 320):
        z, up, down, _ = inputs((20, rank, 64, 16), torch.float16, device)
        z[1, 0] = float("nan")
        out = lowrank_ffn(z, up, down, backend="hopper", storage="recompute")
        assert out.isnan().all(1).nonzero().flatten().tolist() == [1]
        assert out.isnan().any(1).sum() == 1
        up[5, 0] = float("nan")
        assert lowrank_ffn(z, up, down, backend="hopper", storage="recompute").isnan().all()


def test_the_dense_warmup_runs_without_these_kernels(device: torch.device, emulator: Emulator | None) -> None:
    tensors = inputs((20, 16, 40, 8), torch.float16, device)
    options: dict[str, Any] = {"sparsity": None, "storage": "recompute"}
    actual = results(tensors, **options, backend="hopper")
    for mine, theirs in zip(actual, results(tensors, **options, backend="reference"), strict=True):
        assert error(mine, theirs) < 2e-3
    assert emulator is None or not emulator.ran


def test_without_gradients_any_storage_will_do(device: torch.device) -> None:
    z, up, down, _ = inputs((20, 16, 40, 8), torch.float16, device)
    for kept in ("dense", "packed", "recompute"):
        out = lowrank_ffn(z, up, down, backend="hopper", storage=kept)
        assert error(out, lowrank_ffn(z, up, down, backend="reference")) < 2e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "packed"}, "its next kernel alone reads: choose ffn_storage recompute or dense"),
        ({"activation": "gelu"}, "is for activation relu2, not 'gelu'"),
    ],
)
def test_refuses_what_it_cannot_keep_or_compute(options: dict[str, Any], message: str, device: torch.device) -> None:
    with pytest.raises(UserError, match=message):
        results(inputs((20, 16, 40, 8), torch.float16, device), backend="hopper", **options)
    with pytest.raises(UserError, match=r"'hopper' computes float16 and bfloat16, not torch\.float32"):
        results(inputs((20, 16, 40, 8), torch.float32, device), backend="hopper", storage="recompute")


@pytest.mark.parametrize("keeps", ["recompute", "dense"])
def test_refuses_a_width_without_whole_groups(keeps: Any, device: torch.device) -> None:
    tensors = inputs((20, 16, 42, 8), torch.float16, device)
    with pytest.raises(ValueError, match="d_ff = 42 to be a multiple of 4"):
        results(tensors, backend="hopper", storage=keeps)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("fused", "b + 4, codes[k][1]", "b + 2, codes[k][1]"),
        ("hidden", "v.z = p.upper", "v.z = p.lower"),
        ("multiply", "b + 4, e[u].y", "b + 4, e[u].x"),
        ("backward", "relu(x[8 * i + place(m)]", "relu(x[8 * i + place(3 - m)]"),
        ("backward_kept", "write(r + 4 * i, o + 8 * i, i)", "write(r, o + 8 * i, i)"),
    ],
)
def test_a_kernel_that_computes_something_else_is_refused(
    name: str, right: str, wrong: str, device: torch.device, emulator: Emulator | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if emulator is None:
        pytest.skip("compiles mistakes: runs without a GPU")
    body = Source.body

    def mistaken(self: Source) -> str:
        text = body(self)
        assert self.name != name or right in text
        return text.replace(right, wrong) if self.name == name else text

    monkeypatch.setattr(Source, "body", mistaken)
    rank = 320 if name in ("hidden", "multiply") else 64
    tensors = inputs((20, rank, 40, 8), torch.float16, device)
    with pytest.raises(UserError, match=r"'hopper' cannot run here: compiled on this machine .* error .* choose tri"):
        results(tensors, backend="hopper", storage="dense" if name == "backward_kept" else "recompute")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("shape", [(20, 16, 40, 8), (20, 320, 40, 8)])
@pytest.mark.parametrize("keeps", [False, True])
def test_torch_sees_through(keeps: bool, shape: tuple[int, ...], device: torch.device) -> None:
    opcheck(inputs(shape, torch.float16, device), True, True, keeps, "hopper")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("keeps", ["recompute", "dense"])
def test_compiles_into_one_graph(keeps: Any, device: torch.device) -> None:
    options: dict[str, Any] = {"backend": "hopper", "storage": keeps}
    call = torch.compile(lambda z, up, down: lowrank_ffn(z, up, down, **options), fullgraph=True, backend="aot_eager")
    z, up, down, _ = inputs((20, 16, 40, 8), torch.float16, device)
    out = call(z.requires_grad_(), up.requires_grad_(), down)
    torch.testing.assert_close(out, lowrank_ffn(z, up, down, **options))
    out.sum().backward()


def test_autocast(device: torch.device) -> None:
    z, up, down, _ = (t.float().requires_grad_() for t in inputs((20, 16, 40, 8), torch.float32, device))
    for keeps in ("recompute", "dense"):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = lowrank_ffn(z, up, down, backend="hopper", storage=keeps)  # type: ignore[arg-type]
        assert out.dtype == torch.bfloat16
        assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(out.sum(), (z, up, down)))


def test_chunks(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs((300, 320, 40, 8), torch.float16, device)
    whole = {keeps: results(tensors, backend="hopper", storage=keeps) for keeps in ("recompute", "dense")}
    monkeypatch.setattr(storage, "CHUNK_TOKENS", 128)
    monkeypatch.setattr(steps.HopperSteps, "within_workspace", staticmethod(lambda up: 200))
    for keeps, expected in whole.items():
        for mine, theirs in zip(results(tensors, backend="hopper", storage=keeps), expected, strict=True):
            assert error(mine, theirs) < 2e-3
