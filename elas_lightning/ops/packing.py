"""Compressed storage of a 2:4 tensor: the kept values and four bits a group that say where they stood.

A group's code holds the two kept indices in ascending order, the first in its low two bits. A byte of
``meta`` holds two groups, the first in its low four bits. The order is row-major, not that of any hardware.

Shape suffixes: N features, G = N / 4 groups, K = N / 2 kept values, M = N / 8 bytes; a digit is an axis of
that size; "..." leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elas_lightning.ops.backend import check_kernel_dtype, resolve_backend
from elas_lightning.ops.reference import check_24, keep_24


def pack_24(x: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Store what ``sparsify_24(x)`` keeps.

    Args:
        x: ``(..., N)`` floating point, N a multiple of 8; need not be sparse yet.
        backend: ``auto`` or a backend's name, see ``resolve_backend``.

    Returns:
        ``values (..., N/2)`` in the dtype of ``x`` and ``meta (..., N/8)`` uint8, laid out as the file's top
        says. Gradients reach ``x`` through ``values``, at the kept entries.

    Raises:
        ValueError: N is not a multiple of 8, or the dtype is not supported.
        UserError: A backend that is unknown or cannot run here (a ValueError, too).
    """
    dim = check_24(x, -1, multiple=8)
    if resolve_backend(backend, x.device).chosen == "triton":
        check_kernel_dtype(x)
        from elas_lightning.ops.kernels.packing import pack

        return pack(x)
    keep_a, keep_b, keep_c, keep_d = (keep.to(torch.uint8) for keep in keep_24(x, dim))
    # Exactly two are kept, so each index is the count of dropped entries before (after) it.
    first_G = (1 - keep_a) * (2 - keep_b)
    second_G = 3 - (1 - keep_d) * (2 - keep_c)
    kept_G2 = torch.stack((first_G, second_G), -1)
    groups_G4 = x.unflatten(-1, (x.shape[-1] // 4, 4))
    values_K = groups_G4.gather(-1, kept_G2.long()).flatten(-2)
    code_G = first_G | second_G << 2
    meta_M = code_G[..., 0::2] | code_G[..., 1::2] << 4
    return values_K, meta_M


def unpack_24(values: Tensor, meta: Tensor, *, backend: str = "auto") -> Tensor:
    """Undo ``pack_24``: ``unpack_24(*pack_24(x))`` equals ``sparsify_24(x)`` bit for bit.

    Args:
        values: ``(..., N/2)`` kept values.
        meta: ``(..., N/8)`` uint8 as ``pack_24`` makes it.
        backend: ``auto`` or a backend's name, see ``resolve_backend``.

    Returns:
        ``(..., N)`` in the dtype of ``values``.

    Raises:
        ValueError: The shapes do not belong together, or ``meta`` is not uint8.
        UserError: A backend that is unknown or cannot run here (a ValueError, too).
    """
    if meta.dtype != torch.uint8:
        raise ValueError(f"meta must be uint8 as pack_24 makes it, not {meta.dtype}")
    expected = (*meta.shape[:-1], 4 * meta.shape[-1]) if meta.dim() else ()
    if not meta.dim() or values.shape != expected:
        raise ValueError(
            f"values {tuple(values.shape)} and meta {tuple(meta.shape)} do not belong together: "
            "their shapes must be (..., n/2) and (..., n/8)"
        )
    if resolve_backend(backend, values.device).chosen == "triton":
        check_kernel_dtype(values)
        from elas_lightning.ops.kernels.packing import unpack

        return unpack(values, meta)
    code_G = torch.stack((meta & 0xF, meta >> 4), -1).flatten(-2)
    kept_G2 = torch.stack((code_G & 3, code_G >> 2), -1).long()
    values_G2 = values.unflatten(-1, (values.shape[-1] // 2, 2))
    groups_G4 = values.new_zeros((*code_G.shape, 4)).scatter(-1, kept_G2, values_G2)
    return groups_G4.flatten(-2)
