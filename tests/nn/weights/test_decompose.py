"""Sparse plus low rank: never a larger error, better than either part alone, and inputs that count."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.weights.decompose import (
    decompose_matrix,
    decompose_model,
    keep_largest,
    sparse_plus_low_rank,
    truncate,
)
from elas_lightning.nn.weights_config import WeightsConfig, oats_shape

OATS = WeightsConfig(method="oats", oats_iterations=20)


def _trained_like(rows: int = 48, columns: int = 64) -> torch.Tensor:
    """A spectrum that falls and a few large entries, as trained matrices have."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, value, right = torch.linalg.svd(weight, full_matrices=False)
    weight = left @ torch.diag(value * torch.linspace(1, 0, rows).pow(2)) @ right
    heavy = torch.rand(rows, columns, generator=generator) < 0.05
    return weight + heavy * 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
def test_truncation_is_that_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    left, right = truncate(matrix, 4)
    assert left.shape == (shape[0], 4)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(left @ right, u[:, :4] @ torch.diag(s[:4]) @ v[:4], rtol=1e-8, atol=1e-8)
    assert not (torch.matmul(*truncate(matrix, 0))).any()


def test_the_largest_of_each_row_are_kept() -> None:
    matrix = torch.tensor([[1.0, -4.0, 3.0, 2.0], [5.0, 6.0, 7.0, -8.0]])
    assert keep_largest(matrix, 1, "unstructured").tolist() == [[0, -4, 0, 0], [0, 0, 0, -8]]
    assert keep_largest(matrix, 0, "2:4").tolist() == [[0, -4, 3, 0], [0, 0, 7, -8]]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_error_never_grows_with_the_rounds(pattern: Any) -> None:
    matrix = _trained_like()
    errors = []
    for iterations in range(1, 12):
        sparse, left, right = sparse_plus_low_rank(matrix, rank=4, row=24, pattern=pattern, iterations=iterations)
        errors.append(float((matrix - sparse - left @ right).square().sum()))
    assert all(later <= sooner * (1 + 1e-12) for sooner, later in pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]


def test_together_they_beat_either_alone_at_the_same_number_of_entries() -> None:
    matrix = _trained_like()
    rows, columns = matrix.shape
    entries = matrix.numel() // 2

    def error(rank: int, row: int) -> float:
        assert rank * (rows + columns) + row * rows <= entries
        sparse, left, right = sparse_plus_low_rank(matrix, rank=rank, row=row, pattern="unstructured", iterations=40)
        return float((matrix - sparse - left @ right).square().sum())

    rank, row = oats_shape(OATS, columns, rows)
    both = error(rank, row)
    assert both < 0.9 * error(0, entries // rows)
    assert both < 0.9 * error(entries // (rows + columns), 0)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_a_matrix_is_decomposed_as_the_paper_says(shape: tuple[int, int]) -> None:
    """The paper with whole matrices: ``W D`` with D the root of the inputs' second moments, SVDs, rows sorted."""
    weight = _trained_like(*sorted(shape))
    weight = weight if weight.shape == shape else weight.T
    x = torch.randn(300, shape[1], dtype=torch.float64) * torch.logspace(-1, 1, shape[1])
    scale = x.square().sum(0).sqrt().diag()
    rank, row = oats_shape(OATS, shape[1], shape[0])
    assert rank == int(0.25 * 0.5 * shape[0] * shape[1] / sum(shape)) > 0
    sparse = torch.zeros_like(weight)
    for _ in range(OATS.oats_iterations):
        left, value, right = torch.linalg.svd(weight @ scale - sparse)
        low = left[:, :rank] @ value[:rank].diag() @ right[:rank]
        rest = weight @ scale - low
        sparse = torch.zeros_like(rest)
        for i, j in enumerate(rest.abs().argsort(dim=1, descending=True)[:, :row]):
            sparse[i, j] = rest[i, j]
    expected = (sparse + low) @ torch.linalg.inv(scale)
    torch.testing.assert_close(decompose_matrix(weight, x.square().sum(0), OATS), expected, rtol=1e-8, atol=1e-8)


def test_columns_count_as_their_inputs_do() -> None:
    weight, x = _trained_like(), torch.randn(400, 64, dtype=torch.float64)
    x *= torch.logspace(-2, 1, 64)
    moment = x.square().mean(0)

    def output_error(moment_I: torch.Tensor) -> float:
        return float((x @ (decompose_matrix(weight, moment_I, OATS) - weight).T).square().mean())

    assert output_error(moment) < 0.7 * output_error(torch.ones_like(moment))
    torch.testing.assert_close(decompose_matrix(weight, 7 * moment, OATS), decompose_matrix(weight, moment, OATS))
    assert decompose_matrix(weight, torch.zeros(64).index_fill(0, torch.tensor(3), 1.0), OATS).isfinite().all()


@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
def test_a_model_is_decomposed_block_by_block(
    with_method: Callable[..., ModelConfig], input_ids: torch.Tensor, ffn: str
) -> None:
    model = Llama(with_method("oats", {"ffn": ffn}, oats_iterations=5)).double()
    reads: dict[str, list[torch.Tensor]] = {}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    decompose_model(model, [input_ids[:1], input_ids[1:]], lambda moment: moment)
    # the second block's inputs, as the decomposed first block gives them; its q reads what its norm gives
    first = Llama(model.config).double()
    first.load_state_dict({**before, **{k: v for k, v in model.state_dict().items() if "layers.0." in k}})
    block = first.layers[1]
    handle = block.input_layernorm.register_forward_hook(  # type: ignore[union-attr]
        lambda module, arguments, out: reads.setdefault("q", []).append(out)
    )
    down_reads: list[torch.Tensor] = []
    second = block.mlp.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda module, arguments: down_reads.append(module.hidden(arguments[0]))
    )
    with torch.no_grad():
        first(input_ids)
    handle.remove()
    second.remove()
    name = "layers.1.self_attn.q_proj.weight"
    expected = decompose_matrix(before[name], reads["q"][0].flatten(0, 1).square().sum(0), model.config.weights)
    torch.testing.assert_close(model.state_dict()[name], expected)
    name = "layers.1.mlp.down_proj.weight"
    expected = decompose_matrix(before[name], down_reads[0].flatten(0, 1).square().sum(0), model.config.weights)
    torch.testing.assert_close(model.state_dict()[name], expected)
    for name, weight in before.items():
        matrix = "_proj" in name
        assert torch.equal(model.state_dict()[name], weight) != matrix, name
    assert not model.layers[0].mlp._forward_pre_hooks  # type: ignore[union-attr]
    assert F.cross_entropy(model(input_ids).flatten(0, 1), input_ids.flatten()).isfinite()


def test_a_matrix_whose_inputs_are_all_zero_stays_finite() -> None:
    weight = _trained_like()
    expected = decompose_matrix(weight, torch.ones(64, dtype=torch.float64), OATS)
    torch.testing.assert_close(decompose_matrix(weight, torch.zeros(64, dtype=torch.float64), OATS), expected)
