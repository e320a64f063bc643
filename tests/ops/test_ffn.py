"""The low-rank FFN against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from elas_lightning.ops import lowrank_ffn, sparsify_24

ACTIVATIONS = {"relu2": lambda x: F.relu(x) ** 2, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def tensors(*lead: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """z (..., 6), up (16, 6), down (16, 5)"""
    shapes = ((*lead, 6), (16, 6), (16, 5))
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sparsity", ["2:4", None])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_formula(activation: Any, sparsity: Any, lead: tuple[int, ...]) -> None:
    z, up, down = tensors(*lead)
    hidden = ACTIVATIONS[activation](z @ up.T)
    expected = (sparsify_24(hidden) if sparsity else hidden) @ down
    actual = lowrank_ffn(z, up, down, activation=activation, sparsity=sparsity)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_masked_gradient_is_the_numerical_one(activation: Any) -> None:
    torch.manual_seed(1)
    inputs = tensors(2)
    call = lambda *xs: lowrank_ffn(*xs, activation=activation, gradient="masked")  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ste_gradient_is_dense_except_that_down_sees_sparse_features(activation: Any) -> None:
    z, up, down = tensors(3)
    sparse = torch.autograd.grad(lowrank_ffn(z, up, down, activation=activation).sum(), (z, up, down))
    dense_out = lowrank_ffn(z, up, down, activation=activation, sparsity=None)
    dense = torch.autograd.grad(dense_out.sum(), (z, up, down))
    torch.testing.assert_close(sparse[0], dense[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse[1], dense[1], rtol=1e-12, atol=1e-12)
    kept = sparsify_24(ACTIVATIONS[activation](z @ up.T))
    torch.testing.assert_close(sparse[2], kept.sum(0)[:, None].expand(16, 5), rtol=1e-12, atol=1e-12)


def test_transposed_down_is_taken_as_it_is() -> None:
    z, up, down = tensors(3)
    transposed = down.detach().t().contiguous().t()
    torch.testing.assert_close(lowrank_ffn(z, up, transposed), lowrank_ffn(z, up, down))


def test_nan_stays_visible() -> None:
    z, up, down = tensors(2)
    z.data[0, 0] = float("nan")
    out = lowrank_ffn(z, up, down)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_autocast_to_bfloat16() -> None:
    z, up, down = tensors(3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = lowrank_ffn(z, up, down)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert up.grad is not None
    assert up.grad.dtype == torch.float32


# torch's own tracer makes the instance that torch warns of
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("gradient", ["ste", "masked"])
def test_traces_into_one_graph(gradient: Any) -> None:
    # the traced graph runs without a code generator, so no compiler is needed
    call = torch.compile(lambda *xs: lowrank_ffn(*xs, gradient=gradient), fullgraph=True, backend="aot_eager")
    inputs = tensors(3)
    expected = torch.autograd.grad(lowrank_ffn(*inputs, gradient=gradient).sum(), inputs)
    actual = torch.autograd.grad(call(*inputs).sum(), inputs)
    torch.testing.assert_close(actual, expected)


# torch's own tracer makes the instance that torch warns of
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_named_kernel_traces_into_one_graph() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = [t.to(device) for t in tensors(3, dtype=torch.float32)]
    options: dict[str, Any] = {"backend": "triton", "storage": "recompute"}
    call = torch.compile(lambda *xs: lowrank_ffn(*xs, **options), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(*inputs), lowrank_ffn(*inputs, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "'tanh' is unknown: choose one of relu2, relu, gelu, silu"),
        ({"activation": "tanh", "sparsity": None}, "'tanh' is unknown"),
        ({"sparsity": "1:4"}, "'1:4' is unknown: choose '2:4' or None"),
        ({"gradient": "soft"}, "'soft' is unknown: choose ste or masked"),
        ({"gradient": "soft", "sparsity": None}, "'soft' is unknown"),
        ({"backend": "cusparselt"}, "'cusparselt' cannot run here"),
    ],
)
def test_refuses_unknown_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lowrank_ffn(*tensors(2), **options)


@pytest.mark.parametrize("shapes", [((3, 5), (16, 6), (16, 5)), ((3, 6), (16, 6), (8, 5)), ((3, 6), (6,), (6, 5))])
def test_refuses_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"do not fit: they must be \(..., r\), \(d_ff, r\), \(d_ff, r_out\)"):
        lowrank_ffn(*(torch.zeros(shape) for shape in shapes))


def test_refuses_a_hidden_width_without_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        lowrank_ffn(torch.zeros(3, 2), torch.zeros(6, 2), torch.zeros(6, 2))
