"""Trained matrices become sparse plus low rank: OATS (arXiv 2409.13652), the base of HASSLE-free's comparison too.

Block by block, each on what the blocks before it give after their own decomposition, as the paper does.

Shape suffixes: B batch, T time, C model width, O output features, I input features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from elas_lightning.nn.ffn import FFN
from elas_lightning.nn.llama import Block, Llama, rotary_angles
from elas_lightning.nn.weights.masked import magnitude_mask
from elas_lightning.nn.weights_config import OatsPattern, WeightsConfig, oats_shape


def truncate(matrix_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a rank, as factors ``(O, R)`` and ``(R, I)``.

    The leading singular vectors are taken from the Gram matrix of the shorter side, which is several times as fast as
    an SVD; they alone enter the projection, so the squared condition number does no harm.
    """
    if matrix_OI.shape[0] > matrix_OI.shape[1]:
        left, right = truncate(matrix_OI.T, rank)
        return right.T, left.T
    basis_OR = torch.linalg.eigh(matrix_OI @ matrix_OI.T).eigenvectors[:, matrix_OI.shape[0] - rank :]
    return basis_OR, basis_OR.T @ matrix_OI


def keep_largest(matrix_OI: Tensor, row: int, pattern: OatsPattern) -> Tensor:
    """The matrix with its largest magnitudes kept: ``row`` of every row, or two of every four."""
    if pattern == "2:4":
        return matrix_OI * magnitude_mask(matrix_OI)
    index = matrix_OI.abs().topk(row, dim=1).indices
    return torch.zeros_like(matrix_OI).scatter(1, index, matrix_OI.gather(1, index))


def sparse_plus_low_rank(
    matrix_OI: Tensor, *, rank: int, row: int, pattern: OatsPattern, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Alternate between the best low-rank part for a sparse one and the best sparse part for a low-rank one.

    Neither half-step can make the squared error larger (the paper's alternating thresholding).

    Args:
        matrix_OI: What to approximate.
        rank: R; 0 for a sparse part alone.
        row: Entries of the sparse part in each row; means nothing with ``2:4``.
        pattern: Of the sparse part.
        iterations: At least 1.

    Returns:
        The sparse part ``(O, I)`` and the factors ``(O, R)`` and ``(R, I)``.
    """
    sparse_OI = torch.zeros_like(matrix_OI)
    for _ in range(iterations):
        left_OR, right_RI = truncate(matrix_OI - sparse_OI, rank)
        sparse_OI = keep_largest(matrix_OI - left_OR @ right_RI, row, pattern)
    return sparse_OI, left_OR, right_RI


def decompose_matrix(weight_OI: Tensor, moment_I: Tensor, config: WeightsConfig) -> Tensor:
    """OATS on one matrix: its columns count as much as their inputs are large.

    Args:
        weight_OI: The trained matrix.
        moment_I: Second moments of the inputs, up to a common factor. Inputs that are never there are taken for
            a thousandth of the usual size, so that scaling back stays finite.
        config: The ``oats_…`` fields.

    Returns:
        Sparse plus low rank, summed, ``(O, I)``.
    """
    rows, columns = weight_OI.shape
    if not moment_I.any():  # a dead FFN's down: no input counts more than another
        moment_I = torch.ones_like(moment_I)
    size_I = moment_I.clamp(min=1e-6 * float(moment_I.mean())).sqrt()
    rank, row = oats_shape(config, columns, rows)
    sparse_OI, left_OR, right_RI = sparse_plus_low_rank(
        weight_OI * size_I, rank=rank, row=row, pattern=config.oats_pattern, iterations=config.oats_iterations
    )
    return (sparse_OI + left_OR @ right_RI) / size_I


@torch.no_grad()
def decompose_model(model: Llama, batches: Sequence[Tensor], reduce: Callable[[Tensor], Tensor]) -> None:
    """Decompose every matrix of the blocks in place.

    Args:
        model: At full rank, with ``weights.method`` ``oats``.
        batches: Token ids ``(B, T)`` that the inputs' second moments are taken from.
        reduce: Sums a tensor over all processes, each of which has batches of its own.
    """
    config = model.config
    stream = [model.embed_tokens(ids) for ids in batches]
    turn = partial(rotary_angles, head_dim=config.head_dim, theta=config.rope_theta)
    for block in model.layers:
        moments: dict[nn.Linear, Tensor] = {}
        with _watch(block, moments):  # type: ignore[arg-type]
            for x_BTC in stream:
                block(x_BTC, *turn(x_BTC.shape[1], device=x_BTC.device))
        for layer, moment_I in moments.items():
            layer.weight.copy_(decompose_matrix(layer.weight, reduce(moment_I), config.weights))
        stream = [block(x_BTC, *turn(x_BTC.shape[1], device=x_BTC.device)) for x_BTC in stream]


@contextmanager
def _watch(block: Block, moments: dict[nn.Linear, Tensor]) -> Iterator[None]:
    """Sum the squares of what each matrix of a block reads, for as long as the context is open."""

    def add(layer: nn.Linear, x: Tensor) -> None:
        squares_I = x.flatten(0, -2).square().sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
        moments[layer] = moments[layer] + squares_I if layer in moments else squares_I

    def on_attention(layer: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        add(layer, arguments[0])

    def on_ffn(ffn: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        # an FFN without a gate hands its matrices to one op, so there is no call of theirs to hook
        mlp = block.mlp
        assert isinstance(mlp, FFN)  # ModelConfig refuses experts
        for name in ("gate_proj", "up_proj"):
            if hasattr(mlp, name):
                add(getattr(mlp, name), mlp.input_site(arguments[0]))
        add(mlp.down_proj, mlp.hidden_site(mlp.hidden(arguments[0])))  # type: ignore[arg-type]

    attention = block.self_attn
    layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    handles = [layer.register_forward_pre_hook(on_attention) for layer in layers]
    handles.append(block.mlp.register_forward_pre_hook(on_ffn))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
