"""What is kept for backward changes neither the output nor the gradients, and is as small as it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from elas_lightning.errors import UserError
from elas_lightning.ops import lowrank_ffn, storage
from elas_lightning.ops.steps import PlainSteps
from elas_lightning.ops.storage import ffn_gradients, stored_ffn, stored_ffn_backward

# a dense FFN has no packed form; its refusal is tested below
FFNS = [
    ("packed", "2:4", "ste"),
    ("packed", "2:4", "masked"),
    ("recompute", "2:4", "ste"),
    ("recompute", "2:4", "masked"),
    ("recompute", None, "ste"),
]
KEPT = [("packed", "2:4"), ("recompute", "2:4"), ("recompute", None)]


def tensors(tokens: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """z (tokens, 6), up (16, 6), down (16, 5) as the transposed view that the model passes"""
    torch.manual_seed(0)
    z, up, down = (torch.randn(size, dtype=dtype) for size in ((tokens, 6), (16, 6), (5, 16)))
    return z.requires_grad_(), up.requires_grad_(), down.requires_grad_()


def results(tokens: int, **options: Any) -> list[Tensor]:
    z, up, down = tensors(tokens)
    out = lowrank_ffn(z, up, down.t(), **options)
    return [out, *torch.autograd.grad(out.sin().sum(), (z, up, down))]


@pytest.mark.parametrize("chunk", [1, 3, 7, 8192])
@pytest.mark.parametrize(("kept", "sparsity", "gradient"), FFNS)
def test_same_results_in_any_chunks(
    kept: Any, sparsity: Any, gradient: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CHUNK_TOKENS", chunk)
    actual = results(7, sparsity=sparsity, gradient=gradient, storage=kept)
    expected = results(7, sparsity=sparsity, gradient=gradient, storage="dense")
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", ["packed", "recompute"])
def test_masked_gradient_is_the_numerical_one(kept: Any) -> None:
    call = lambda z, up, down: lowrank_ffn(z, up, down.t(), gradient="masked", storage=kept)  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors(2))


class Operators(TorchDispatchMode):
    """Names what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_call_is_one_operator_in_each_direction() -> None:
    z, up, down = tensors(2)
    down = down.detach().t().requires_grad_()
    with Operators() as called:
        out = lowrank_ffn(z, up, down, storage="recompute")
        torch.autograd.grad(out, (z, up, down), torch.ones(2, 5, dtype=z.dtype))
    names = [name for name in called.names if not name.startswith("aten.ones")]
    assert names == ["elas.lowrank_ffn.default", "elas.lowrank_ffn_backward.default"]


def test_one_chunk_is_multiplied_without_copies_and_conversions() -> None:
    z, up, down = (t.detach() for t in tensors(2))
    nothing = z.new_empty((0, 0))
    options = (False, False, False, "reference")
    with Operators() as called:
        ffn_gradients(z, up, down.t(), nothing, nothing, torch.ones(2, 5, dtype=z.dtype), *options)
    copies = ("aten.clone", "aten._to_copy", "aten.copy_", "aten.cat", "aten.slice")
    # the order of ``down`` that plain products and Triton's kernels read
    assert [name for name in called.names if name.startswith(copies)] == ["aten.clone.default"]


def test_autocast_on_a_gpu_makes_no_hidden_features_wider() -> None:
    steps = PlainSteps()
    with FakeTensorMode():
        z, up, down, grad = (torch.empty(rows, 8, device="cuda", dtype=torch.float16) for rows in (16, 32, 32, 16))
        torch.set_autocast_enabled("cuda", True)
        try:
            with Operators() as called:
                steps.forward(z, up, down, False)
                hidden, slope = steps.hidden_backward(z, up, down, grad, False, False)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert (hidden.dtype, slope.dtype) == (torch.float16, torch.float16)
    assert "aten._to_copy.default" not in called.names


def test_a_second_derivative_is_refused() -> None:
    z, up, down = tensors(2)
    out = lowrank_ffn(z, up, down.t(), storage="recompute")
    with pytest.raises(UserError, match="no second derivative: choose backend reference and ffn_storage dense"):
        torch.autograd.grad(out.sum(), z, create_graph=True)


def kept_bytes(**options: Any) -> int:
    """Bytes that autograd keeps of 64 tokens, without the inputs themselves."""
    z, up, down = tensors(64, torch.float32)
    inputs = {t.untyped_storage().data_ptr() for t in (z, up, down)}
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in inputs:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = lowrank_ffn(z, up, down.t(), **options)
    out.sum().backward()
    return sum(found.values())


def test_keeps_what_it_says() -> None:
    hidden = 64 * 16 * 4
    assert kept_bytes(storage="dense") == 2 * hidden
    assert kept_bytes(storage="recompute") == 0
    assert kept_bytes(storage="recompute", sparsity=None) == 0
    # half the values, and a byte for every eight features
    assert kept_bytes(storage="packed") == hidden // 2 + 64 * 16 // 8


def test_autocast() -> None:
    z, up, down = tensors(4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = lowrank_ffn(z, up, down.t(), storage="recompute")
        expected = lowrank_ffn(z, up, down.t())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert up.grad is not None
    assert up.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("kept", "sparsity"), KEPT)
def test_compiles_into_one_graph(kept: Any, sparsity: Any) -> None:
    options = {"sparsity": sparsity, "gradient": "masked", "storage": kept} if sparsity else {"sparsity": None}
    ffn = lambda z, up, down: lowrank_ffn(z, up, down.t(), **options)  # noqa: E731
    z, up, down = tensors(7)
    out = torch.compile(ffn, fullgraph=True, backend="aot_eager")(z, up, down)
    torch.testing.assert_close(out, results(7, **options)[0])
    out.sum().backward()
    assert all(t.grad is not None for t in (z, up, down))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(("kept", "sparsity"), KEPT)
@pytest.mark.parametrize("masked", [False, True])
def test_torch_sees_through(masked: bool, kept: str, sparsity: str | None, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    z, up, down = (t.detach().to(device).requires_grad_() for t in tensors(7, torch.float32))
    options = (sparsity is not None, masked, kept == "packed", backend)
    torch.library.opcheck(stored_ffn, (z, up, down.t(), *options))
    with torch.no_grad():
        out, values, meta = stored_ffn(z, up, down.t(), *options)
        arguments = (z.detach(), up.detach(), down.detach().t(), values, meta, out, *options)
    torch.library.opcheck(stored_ffn_backward, arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "disk"}, "'disk' is unknown: choose dense, packed or recompute"),
        ({"storage": "recompute", "activation": "gelu"}, "is for activation relu2, not 'gelu': choose dense"),
        ({"storage": "packed", "sparsity": None}, "needs sparsity '2:4'"),
    ],
)
def test_refuses_what_has_no_such_storage(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        results(2, **options)


@pytest.mark.parametrize(("features", "kept", "multiple"), [(12, "packed", 8), (10, "recompute", 4)])
def test_refuses_a_width_without_whole_groups(features: int, kept: Any, multiple: int) -> None:
    z, up, down = torch.zeros(2, 6), torch.zeros(features, 6), torch.zeros(features, 5)
    with pytest.raises(ValueError, match=f"needs d_ff = {features} to be a multiple of {multiple}"):
        lowrank_ffn(z, up, down, storage=kept)
