"""The FFN by Hopper's kernels: on such a GPU themselves, elsewhere stand-ins that take what a launch takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ffn_inputs import error, inputs, results
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops import backend as backends
from elas_lightning.ops import lowrank_ffn, pack_24, relu2_sparsify_24, storage, unpack_24
from elas_lightning.ops.hopper import ffn, steps
from elas_lightning.ops.hopper.compiler import Source
from elas_lightning.ops.hopper.fragments import from_fragments, to_fragments
from elas_lightning.ops.storage import stored_ffn, stored_ffn_backward

# (tokens, rank, d_ff, output rank): whole blocks, odd everything, and what the other kernels are for
SHAPES = [
    (256, 128, 256, 128),
    (37, 24, 44, 20),
    (300, 200, 528, 256),
    (200, 320, 272, 64),
    (130, 576, 136, 600),
]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Kernels:
    """The kernels as far as they can be seen from a launch: boxes of tensors in, whole tensors out."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def launch(
        self, source: Source, programs: int, threads: int, shared: int, device: torch.device, *arguments: Any
    ) -> None:
        assert programs > 0
        assert programs % ffn.CLUSTER == 0
        assert shared <= 227 * 2**10
        self.ran.append(source.name)
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.dim() == 2:  # what a tensor map says of it
                assert argument.is_contiguous() or argument.shape[1] == argument.stride(0)
        getattr(self, source.name)(dict(source.constants), programs, *arguments)

    @staticmethod
    def _selected(z: Tensor, up: Tensor) -> Tensor:
        width = max(z.shape[1], up.shape[1])
        pre = F.pad(z, (0, width - z.shape[1])).float() @ F.pad(up, (0, width - up.shape[1])).float().T
        return relu2_sparsify_24(pre.to(z.dtype), backend="reference")

    def fused(
        self,
        constants: dict[str, int],
        programs: int,
        z: Tensor,
        up: Tensor,
        down: Tensor,
        out: Tensor,
        tokens: int,
        blocks: int,
    ) -> None:
        assert z.shape[1] <= constants["R"]
        assert 16 * (up.shape[0] // 16) == up.shape[0] <= 128 * blocks
        hidden = self._selected(z, up)[:, : down.shape[1]]
        product = (hidden.float() @ down.float().T).to(z.dtype)
        out.copy_(F.pad(product, (0, constants["R"] - down.shape[0])))
        assert tokens == z.shape[0]

    def _hidden(
        self,
        z: Tensor,
        up: Tensor,
        values: Tensor,
        codes: Tensor,
        kept: Tensor,
        keeps: int,
        features: int,
        steps: int,
    ) -> None:
        if keeps:
            kept.copy_((z.float() @ up.float().T).to(z.dtype).relu()[:, :features])
        rows = 2 * values.numel() // (64 * steps)
        hidden = self._selected(z, up)
        whole = F.pad(hidden, (0, 64 * steps - hidden.shape[1], 0, rows - hidden.shape[0]))
        for room, made in zip(
            (values, codes), to_fragments(*pack_24(whole, backend="reference")), strict=True
        ):
            room.copy_(made)

    def hidden(self, constants: dict[str, int], programs: int, *arguments: Any) -> None:
        z, up, values, codes, kept, tokens, features, columns, steps, parts = arguments
        assert constants["R"] >= z.shape[1]
        assert 1 <= parts <= columns
        assert programs == ffn.CLUSTER * -(-tokens // 256) * parts
        self._hidden(z, up, values, codes, kept, constants["KEEPS"], features, steps)

    def hidden_streamed(self, constants: dict[str, int], programs: int, *arguments: Any) -> None:
        z, up, values, codes, kept, tokens, features, _, steps, depth = arguments
        assert tokens == z.shape[0]
        assert depth == -(-z.shape[1] // 64)
        self._hidden(z, up, values, codes, kept, constants["KEEPS"], features, steps)

    def multiply(self, constants: dict[str, int], programs: int, *arguments: Any) -> None:
        down, values, codes, out, *sizes = arguments
        tokens, width, steps = sizes
        hidden = unpack_24(*from_fragments(values, codes, 64 * steps), backend="reference")
        product = hidden[:tokens, : down.shape[1]].float() @ down.float().T
        out.copy_(F.pad(product, (0, width - down.shape[0])).to(out.dtype))

    @staticmethod
    def _slopes(
        relu: Tensor, grad: Tensor, down: Tensor, hidden: Tensor, grad_hidden: Tensor, masked: int
    ) -> None:
        kept = relu2_sparsify_24(relu, backend="reference")
        slope = 2 * relu.float() * (grad.float() @ down.float().T)[:, : hidden.shape[1]]
        hidden.copy_(kept)
        grad_hidden.copy_((slope * (kept != 0) if masked else slope).to(relu.dtype))

    def backward(self, constants: dict[str, int], programs: int, *arguments: Any) -> None:
        z, up, grad, down, hidden, grad_hidden, tokens, features, columns, parts = arguments
        assert (tokens, features) == hidden.shape
        assert 1 <= parts <= columns == -(-features // 128)
        relu = (z.float() @ up.float().T).to(z.dtype).relu()[:, :features]
        self._slopes(relu, grad, down, hidden, grad_hidden, constants["MASKED"])

    def backward_streamed(self, constants: dict[str, int], programs: int, *arguments: Any) -> None:
        z, up, grad, down, kept, hidden, grad_hidden, *sizes = arguments
        tokens, features, blocks, columns, z_depth, grad_depth = sizes
        assert (blocks, columns) == (-(-tokens // 128), -(-features // 256))
        assert grad_depth == -(-grad.shape[1] // 64)
        if constants["KEEPS"]:
            assert z_depth == 0
            relu = kept
        else:
            assert z_depth == -(-z.shape[1] // 64)
            relu = (z.float() @ up.float().T).to(z.dtype).relu()[:, :features]
        self._slopes(relu, grad, down, hidden, grad_hidden, constants["MASKED"])

    def backward_kept(self, constants: dict[str, int], programs: int, *arguments: Any) -> None:
        grad, down, kept, hidden, grad_hidden, tokens, features, columns, parts = arguments
        assert (tokens, features) == kept.shape
        assert constants["R"] >= grad.shape[1]
        assert 1 <= parts <= columns
        self._slopes(kept, grad, down, hidden, grad_hidden, constants["MASKED"])


@pytest.fixture(autouse=True)
def kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels | None]:
    if device.type == "cuda":
        if torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("runs on compute capability 9.0, or where there is no GPU")
        yield None
        return
    for trial in (steps._try_forward, steps._try_backward, steps._try_kept):
        trial.cache_clear()
    stand_in = Kernels()
    monkeypatch.setattr(backends, "_runs", lambda name, device: "named")
    monkeypatch.setattr(ffn, "launch", stand_in.launch)
    monkeypatch.setattr(ffn, "row_map", lambda matrix, rows: _mapped(matrix, rows))
    monkeypatch.setattr(ffn, "group_map", lambda matrix, rows: _mapped(matrix, rows, whole=16))
    monkeypatch.setattr(ffn, "_clusters", lambda device: 66)
    yield stand_in


def _mapped(matrix: Tensor, rows: int, whole: int = 1) -> Tensor:
    """What a bulk copy asks of a matrix."""
    assert matrix.stride() == (matrix.shape[1], 1)
    assert 2 * matrix.stride(0) % 16 == 0
    assert matrix.shape[0] % whole == 0
    assert rows <= 256
    return matrix


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("keeps", ["recompute", "dense"])
def test_agrees_with_the_reference(
    keeps: Any,
    gradient: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    kernels: Kernels | None,
) -> None:
    tensors = inputs(shape, dtype, device)
    actual = results(tensors, gradient=gradient, backend="hopper", storage=keeps)
    expected = results(tensors, gradient=gradient, backend="reference")
    for mine, theirs in zip(actual, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert error(mine, theirs) < TOLERANCE[dtype]
    if kernels is not None:
        rank = max(shape[1], shape[3])
        packs = "hidden" if shape[1] <= 512 else "hidden_streamed"
        expected_kernels = ["fused", "backward"] if rank <= 256 else [packs, "multiply", "backward_streamed"]
        if keeps == "dense":
            last = "backward_kept" if shape[3] <= 512 else "backward_streamed"
            expected_kernels = [packs, "multiply", last]
        assert set(kernels.ran) == set(expected_kernels)


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


def test_leading_dimensions_contiguous_down_and_no_tokens(device: torch.device) -> None:
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


def test_the_dense_warmup_runs_without_these_kernels(device: torch.device, kernels: Kernels | None) -> None:
    tensors = inputs((20, 16, 40, 8), torch.float16, device)
    options: dict[str, Any] = {"sparsity": None, "storage": "recompute"}
    actual = results(tensors, **options, backend="hopper")
    for mine, theirs in zip(actual, results(tensors, **options, backend="reference"), strict=True):
        assert error(mine, theirs) < 2e-3
    assert kernels is None or not kernels.ran


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
def test_refuses_what_it_cannot_keep_or_compute(
    options: dict[str, Any], message: str, device: torch.device
) -> None:
    with pytest.raises(UserError, match=message):
        results(inputs((20, 16, 40, 8), torch.float16, device), backend="hopper", **options)
    with pytest.raises(UserError, match=r"'hopper' computes float16 and bfloat16, not torch\.float32"):
        results(inputs((20, 16, 40, 8), torch.float32, device), backend="hopper", storage="recompute")


@pytest.mark.parametrize("wrong", ["fused", "hidden", "multiply", "backward", "backward_kept"])
def test_a_kernel_that_computes_something_else_is_refused(
    wrong: str, device: torch.device, kernels: Kernels | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels is None:
        pytest.skip("needs stand-ins that are wrong: runs without a GPU")
    right = getattr(kernels, wrong)

    def mistaken(constants: dict[str, int], programs: int, *arguments: Any) -> None:
        right(constants, programs, *arguments)
        made = [t for t in arguments if isinstance(t, Tensor) and t.dtype == torch.float16][
            -1 if wrong != "hidden" else 2
        ]
        made.copy_(made.roll(1, 0))

    monkeypatch.setattr(kernels, wrong, mistaken)
    rank = 320 if wrong in ("hidden", "multiply") else 64
    tensors = inputs((20, rank, 40, 8), torch.float16, device)
    with pytest.raises(
        UserError, match=r"'hopper' cannot run here: compiled on this machine .* error .* choose tri"
    ):
        results(tensors, backend="hopper", storage="dense" if wrong == "backward_kept" else "recompute")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("shape", [(20, 16, 40, 8), (20, 320, 40, 8)])
@pytest.mark.parametrize("keeps", [False, True])
def test_torch_sees_through(keeps: bool, shape: tuple[int, ...], device: torch.device) -> None:
    z, up, down, grad = inputs(shape, torch.float16, device)
    options = (True, True, keeps, "hopper")
    torch.library.opcheck(
        stored_ffn, (z.requires_grad_(), up.requires_grad_(), down.requires_grad_(), *options)
    )
    with torch.no_grad():
        _, values, meta = stored_ffn(z, up, down, *options)
    arguments = (z.detach(), up.detach(), down.detach(), values, meta, grad, *options)
    torch.library.opcheck(stored_ffn_backward, arguments)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("keeps", ["recompute", "dense"])
def test_compiles_into_one_graph(keeps: Any, device: torch.device) -> None:
    options: dict[str, Any] = {"backend": "hopper", "storage": keeps}
    call = torch.compile(
        lambda z, up, down: lowrank_ffn(z, up, down, **options), fullgraph=True, backend="aot_eager"
    )
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
