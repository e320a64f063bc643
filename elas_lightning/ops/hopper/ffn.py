"""The kernels in ``cuda/`` as functions of tensors, 16 bits wide, contiguous.

Which one runs is a matter of the ranks alone. Up to ``FUSED_RANK`` one kernel goes from ``z`` to the output, and
backward keeps its tokens in shared memory. Above it the hidden features pass through memory once, packed, and up to
``RESIDENT_RANK`` their tokens are still held.

Shape suffixes: T tokens, R rank, F hidden features, O output rank.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.ops.hardware_layout import round_up
from elas_lightning.ops.hopper.compiler import Source
from elas_lightning.ops.hopper.driver import TensorMap, group_map, launch, row_map
from elas_lightning.ops.hopper.fragments import FEATURES, TOKENS, empty_fragments

FUSED_RANK = 256
RESIDENT_RANK = 512
CLUSTER = 2
_THREADS = 384
# Slots in shared memory are 128 rows of 64 numbers; so much is left for them and for what stays.
_BOX = TOKENS * 128
_ROOM = 224 * 1024
# Alignment of the slots, and barriers.
_BESIDE = 1024 + 256


@cache
def fused_source(rank: int, half: bool) -> Source:
    """``fused.cu`` for ranks up to ``rank``, 128 or 256."""
    return Source("fused", (("R", rank),), dense=(128,), sparse=(rank,), half=half)


@cache
def hidden_source(rank: int, keeps: bool, half: bool) -> Source:
    """The kernel that packs hidden features for a rank, and keeps what they were before squaring where asked to."""
    if rank <= RESIDENT_RANK:
        constants = (("R", round_up(rank, 128)), ("KEEPS", int(keeps)))
        return Source("hidden", constants, dense=(128,), half=half)
    return Source("hidden_streamed", (("KEEPS", int(keeps)),), dense=(256,), half=half)


@cache
def multiply_source(width: int, half: bool) -> Source:
    """``multiply.cu`` for so many outputs a program, 128 or 256."""
    return Source("multiply", (("WIDTH", width),), sparse=(width,), half=half)


@cache
def backward_source(rank: int, masked: bool, half: bool) -> Source:
    """The kernel of backward for ranks up to ``rank``."""
    if rank <= FUSED_RANK:
        constants = (("R", fused_width(rank)), ("MASKED", int(masked)))
        return Source("backward", constants, dense=(128,), half=half)
    return Source("backward_streamed", (("MASKED", int(masked)), ("KEEPS", 0)), dense=(256,), half=half)


@cache
def kept_backward_source(rank: int, masked: bool, half: bool) -> Source:
    """The kernel of backward for an output rank where relu of the pre-activations was kept."""
    if rank <= RESIDENT_RANK:
        constants = (("R", round_up(rank, 128)), ("MASKED", int(masked)))
        return Source("backward_kept", constants, dense=(128,), half=half)
    return Source("backward_streamed", (("MASKED", int(masked)), ("KEEPS", 1)), dense=(256,), half=half)


def fused_width(rank: int) -> int:
    """128 or 256: what a rank is computed as."""
    return 128 if rank <= 128 else FUSED_RANK


def forward(z_TR: Tensor, up_FR: Tensor, down_OF: Tensor) -> Tensor:
    """``S(relu(z upᵀ)**2) down``, ``down`` given as ``(O, F)``; F in whole groups. Returns ``(T, O)``."""
    out_rank = down_OF.shape[0]
    z_TR, up_FR, down_OF = _aligned(z_TR), _whole(up_FR), _aligned(down_OF)
    if max(z_TR.shape[1], out_rank) <= FUSED_RANK:
        return _columns(_fused(z_TR, up_FR, down_OF), out_rank)
    return multiply(*hidden(z_TR, up_FR), z_TR.shape[0], down_OF)


def forward_keeping(z_TR: Tensor, up_FR: Tensor, down_OF: Tensor, kept_TF: Tensor) -> Tensor:
    """The same, with ``relu(z upᵀ)`` written into ``kept``."""
    packed = hidden(_aligned(z_TR), _whole(up_FR), kept_TF)
    return multiply(*packed, z_TR.shape[0], _aligned(down_OF))


def _fused(z_TR: Tensor, up_FR: Tensor, down_OF: Tensor) -> Tensor:
    tokens, width = z_TR.shape[0], fused_width(max(z_TR.shape[1], down_OF.shape[0]))
    out_TO = z_TR.new_empty((tokens, width))
    slots = 12 if width == 128 else 5
    launch(
        fused_source(width, z_TR.dtype == torch.float16),
        CLUSTER * min(_clusters(z_TR.device), _ceil(tokens, CLUSTER * TOKENS)),
        _THREADS,
        width * 2 * TOKENS + slots * width * 128 + _BESIDE,
        z_TR.device,
        row_map(z_TR, TOKENS),
        group_map(up_FR, 128 // CLUSTER),
        row_map(down_OF, width // CLUSTER),
        out_TO,
        tokens,
        _ceil(down_OF.shape[1], 128),
    )
    return out_TO


def hidden(z_TR: Tensor, up_FR: Tensor, kept_TF: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``S(relu(z upᵀ)**2)`` in the form of ``fragments.py``; z in whole multiples of 16 bytes, F of 16."""
    (tokens, rank), features = z_TR.shape, up_FR.shape[0]
    values, codes = empty_fragments(z_TR, tokens, features)
    source = hidden_source(rank, kept_TF is not None, z_TR.dtype == torch.float16)
    stays = round_up(rank, 128) * 2 * TOKENS if rank <= RESIDENT_RANK else None
    plan = _plan(tokens, features, stays, 12, z_TR.device)
    launch(
        source, plan.programs, _THREADS, plan.shared_bytes, z_TR.device,
        row_map(z_TR, TOKENS), group_map(up_FR, plan.tile // CLUSTER),
        values, codes, values if kept_TF is None else kept_TF,
        tokens, features if kept_TF is None else kept_TF.shape[1], plan.columns, _ceil(features, FEATURES),
        _ceil(rank, 64) if stays is None else plan.parts,
    )  # fmt: skip
    return values, codes


def multiply(values: Tensor, codes: Tensor, tokens: int, down_OF: Tensor) -> Tensor:
    """What is packed times ``down``: ``(T, O)``."""
    out_rank, features = down_OF.shape
    width = 128 if out_rank <= 128 else 256
    # two outputs are written at once
    out_TO = values.new_empty((tokens, round_up(out_rank, 2)))
    launch(
        multiply_source(width, values.dtype == torch.float16),
        CLUSTER * _ceil(tokens, CLUSTER * TOKENS) * _ceil(out_rank, width),
        _THREADS,
        (8 if width == 128 else 6) * width * 128 + _BESIDE,
        values.device,
        row_map(down_OF, width // CLUSTER),
        values,
        codes,
        out_TO,
        tokens,
        out_TO.shape[1],
        _ceil(features, FEATURES),
    )
    return _columns(out_TO, out_rank)


def hidden_backward(
    z_TR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_TO: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    """The hidden features again and the gradient of their pre-activations, both ``(T, F)``; F in whole groups."""
    tokens, features = z_TR.shape[0], up_FR.shape[0]
    z_TR, grad_TO = _aligned(z_TR), _aligned(grad_TO)
    up_FR, down_FO = _whole(up_FR), _whole(down_FO)
    hidden_TF, grad_TF = z_TR.new_empty((2, tokens, features)).unbind()
    rank = max(z_TR.shape[1], grad_TO.shape[1])
    source = backward_source(rank, masked, z_TR.dtype == torch.float16)
    stays = 4 * fused_width(rank) * TOKENS if rank <= FUSED_RANK else None
    plan = _plan(tokens, features, stays, 10, z_TR.device)
    sizes: tuple[int, ...] = (tokens, features, plan.columns, plan.parts)
    if stays is None:
        depths = _ceil(z_TR.shape[1], 64), _ceil(grad_TO.shape[1], 64)
        sizes = (tokens, features, _ceil(tokens, TOKENS), plan.columns, *depths)
    launch(
        source,
        plan.programs,
        _THREADS,
        plan.shared_bytes,
        z_TR.device,
        row_map(z_TR, TOKENS),
        group_map(up_FR, plan.tile // CLUSTER),
        row_map(grad_TO, TOKENS),
        group_map(down_FO, plan.tile // CLUSTER),
        *((hidden_TF,) if stays is None else ()),  # nothing was kept
        hidden_TF,
        grad_TF,
        *sizes,
    )
    return hidden_TF, grad_TF


def kept_backward(kept_TF: Tensor, down_FO: Tensor, grad_TO: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
    """What ``hidden_backward`` returns, from what ``forward_keeping`` has kept."""
    tokens, features = kept_TF.shape
    grad_TO, down_FO = _aligned(grad_TO), _whole(down_FO)
    hidden_TF, grad_TF = kept_TF.new_empty((2, tokens, features)).unbind()
    rank = grad_TO.shape[1]
    source = kept_backward_source(rank, masked, kept_TF.dtype == torch.float16)
    stays = round_up(rank, 128) * 2 * TOKENS if rank <= RESIDENT_RANK else None
    plan = _plan(tokens, features, stays, 10, kept_TF.device)
    maps: tuple[TensorMap, ...] = (row_map(grad_TO, TOKENS), group_map(down_FO, plan.tile // CLUSTER))
    sizes: tuple[int, ...] = (tokens, features, plan.columns, plan.parts)
    if stays is None:
        maps *= 2  # z and up are not read
        sizes = (tokens, features, _ceil(tokens, TOKENS), plan.columns, 0, _ceil(rank, 64))
    tensors = kept_TF, hidden_TF, grad_TF
    launch(source, plan.programs, _THREADS, plan.shared_bytes, kept_TF.device, *maps, *tensors, *sizes)
    return hidden_TF, grad_TF


def _columns(matrix: Tensor, count: int) -> Tensor:
    """The first columns; a view takes longer to make than all the rest of a small call's arithmetic."""
    return matrix if matrix.shape[1] == count else matrix[:, :count]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


@cache
def _clusters(device: torch.device) -> int:
    """How many clusters run at once: a program has a multiprocessor to itself."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) // CLUSTER


class _Plan(NamedTuple):
    """How a kernel goes through tokens and features.

    Attributes:
        tile: Features of a tile.
        columns: Tiles beside each other.
        parts: Into how many parts the features are split, so that few tokens fill the device.
        programs: All of them.
        shared_bytes: Of each.
    """

    tile: int
    columns: int
    parts: int
    programs: int
    shared_bytes: int


def _plan(tokens: int, features: int, stays: int | None, slots: int, device: torch.device) -> _Plan:
    """The plan of a kernel that holds its tokens, ``stays`` bytes, beside at most so many slots; or holds none."""
    sets = _ceil(tokens, CLUSTER * TOKENS)
    if stays is None:
        columns = _ceil(features, 256)
        return _Plan(256, columns, 1, CLUSTER * min(_clusters(device), sets * columns), 4 * 3 * _BOX + _BESIDE)
    columns = _ceil(features, 128)
    parts = max(1, min(columns, _clusters(device) // sets))
    shared_bytes = stays + min(slots, (_ROOM - stays) // _BOX) * _BOX + _BESIDE
    return _Plan(128, columns, parts, CLUSTER * sets * parts, shared_bytes)


def _aligned(matrix: Tensor) -> Tensor:
    """Rows of whole multiples of 16 bytes, as bulk copies want them: zeros to the right, where there is a need.

    A copy, too, of what begins between two such multiples, as a part of a larger tensor may.
    """
    if matrix.shape[1] % 8:
        return F.pad(matrix, (0, -matrix.shape[1] % 8))
    return matrix.clone() if matrix.data_ptr() % 16 else matrix


def _whole(matrix: Tensor) -> Tensor:
    """The same with whole sixteens of features as rows."""
    right, below = -matrix.shape[1] % 8, -matrix.shape[0] % 16
    return F.pad(matrix, (0, right, 0, below)) if right or below else _aligned(matrix)
