"""The step between factors against the same step on the whole matrix, in float64."""

import pytest
import torch
from torch import Tensor

from elas_lightning.training.optimizers.riemannian import riemannian_step

SHAPES = [(12, 9, 3), (5, 20, 4), (30, 7, 1), (6, 6, 6)]  # O, I, R; twice the rank may exceed a dimension


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _projector(factor: Tensor) -> Tensor:
    """Onto what the columns of a matrix span, by its pseudo-inverse."""
    return factor @ torch.linalg.pinv(factor, rtol=1e-12)


def _moved(B: Tensor, A: Tensor, G: Tensor, lr: float) -> Tensor:
    """W - η P(G) as a whole matrix."""
    left, right = _projector(B), _projector(A.T)
    return B @ A - lr * (left @ G + G @ right - left @ G @ right)


def _truncated(W: Tensor, rank: int) -> Tensor:
    left, value, right = torch.linalg.svd(W, full_matrices=False)
    return (left[:, :rank] * value[:rank]) @ right[:rank]


def _step(B: Tensor, A: Tensor, G: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    return riemannian_step(B, A, G @ A.T, B.T @ G, lr)


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
@pytest.mark.parametrize("lr", [1e-3, 1.0, 100.0])
def test_the_step_is_projection_and_retraction_of_the_whole_matrix(
    rows: int, columns: int, rank: int, lr: float
) -> None:
    B, A, G = _random(rows, rank), _random(rank, columns), _random(rows, columns)
    new_B, new_A = _step(B, A, G, lr)
    expected = _truncated(_moved(B, A, G, lr), rank)
    assert (new_B @ new_A - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_the_new_factors_are_balanced(rows: int, columns: int, rank: int) -> None:
    new_B, new_A = _step(_random(rows, rank), 100 * _random(rank, columns), _random(rows, columns), 0.1)
    gram = new_B.T @ new_B
    torch.testing.assert_close(gram, new_A @ new_A.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gram.diagonal(), torch.linalg.svdvals(new_B @ new_A)[:rank])


def test_the_step_does_not_depend_on_how_the_product_is_split() -> None:
    B, A, G = _random(12, 4), _random(4, 9), _random(12, 9)
    gauge = _random(4, 4)
    one = torch.matmul(*_step(B, A, G, 0.5))
    other = torch.matmul(*_step(B @ gauge, torch.linalg.solve(gauge, A), G, 0.5))
    assert (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("lost", ["B", "A", "both", "all of B"])
def test_directions_that_a_factor_has_lost_are_projected_out(lost: str) -> None:
    B, A, G = _random(12, 4), _random(4, 9), _random(12, 9)
    if lost in ("B", "both"):
        B[:, 3] = B[:, 0] - 2 * B[:, 1]
    if lost in ("A", "both"):
        A[2] = 0.5 * A[0]
    if lost == "all of B":
        B.zero_()
    new_B, new_A = _step(B, A, G, 0.3)
    expected = _truncated(_moved(B, A, G, 0.3), 4)
    assert (new_B @ new_A - expected).abs().max() < 1e-10


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-8])
def test_equal_singular_values_are_no_trouble(gap: float) -> None:
    left, right = torch.linalg.qr(_random(12, 4))[0], torch.linalg.qr(_random(9, 4))[0]
    values = 1 + gap * torch.arange(4, dtype=torch.float64)
    B, A, G = left * values, right.T.contiguous(), _random(12, 9)
    new_B, new_A = _step(B, A, G, 1e-2)
    assert (new_B @ new_A - _truncated(_moved(B, A, G, 1e-2), 4)).abs().max() < 1e-10


def test_where_the_cut_falls_between_equal_singular_values_either_is_the_best() -> None:
    # P(G) is all of G here, and puts a second singular value of 1 beside the first
    B, A, G = torch.zeros(6, 1).double(), torch.zeros(1, 5).double(), torch.zeros(6, 5).double()
    B[0], A[0, 0], G[1, 0], G[0, 1] = 1.0, 1.0, -1.0, 1.0
    moved = _moved(B, A, G, 1.0)
    new_B, new_A = _step(B, A, G, 1.0)
    values = torch.linalg.svdvals(moved)
    left_out = torch.linalg.matrix_norm(moved - new_B @ new_A)
    assert float(left_out) == pytest.approx(float(values[1:].square().sum().sqrt()), abs=1e-12)
    assert torch.linalg.matrix_rank(new_B @ new_A) == 1


def test_no_gradient_no_change_but_balance() -> None:
    B, A = _random(12, 4), _random(4, 9)
    new_B, new_A = _step(B, A, torch.zeros(12, 9).double(), 1.0)
    torch.testing.assert_close(new_B @ new_A, B @ A)
    torch.testing.assert_close(new_B.T @ new_B, new_A @ new_A.T)


def test_float32_is_close_to_float64() -> None:
    B, A, G = _random(64, 8), _random(8, 48), _random(64, 48)
    exact = torch.matmul(*_step(B, A, G, 0.1))
    narrow = torch.matmul(*_step(B.float(), A.float(), G.float(), 0.1))
    assert (exact - narrow).abs().max() < 1e-5 * exact.abs().max()
