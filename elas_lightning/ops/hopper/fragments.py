"""The packed form that goes from ``cuda/hidden.cu`` to ``cuda/multiply.cu``: what each thread holds, thread by thread.

A step is 64 features of 16 tokens, one warp's share; steps of the same tokens follow each other. Of a step the values
are two halves of 32 features, 32 lanes each, a lane 8 numbers: lane ``4 g + q`` has the two kept of group q of row g,
those of row g + 8, then the same of group q + 4. The codes are 16 pairs of 32-bit words: lane pair ``2 g + c`` has, for
both halves, the codes (``pack_24``'s, four bits a group) of features 16 c to 16 c + 15 of row g, and of row g + 8 above
them. This is what ``wgmma.mma_async.sp`` of 16-bit numbers takes from the registers of a thread, so that loads and
stores are whole and nothing is rearranged (PTX ISA, "sparse matrix storage" of the asynchronous warpgroup
instructions).

Shape suffixes: T tokens, K = F / 2 kept values, M = F / 8 bytes of codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elas_lightning.ops.hardware_layout import round_up

TOKENS = 128
FEATURES = 64


def empty_fragments(like: Tensor, tokens: int, features: int) -> tuple[Tensor, Tensor]:
    """Room for so many tokens and features in whole blocks: flat values, and flat codes in int32."""
    entries = round_up(tokens, TOKENS) * round_up(features, FEATURES)
    return like.new_empty(entries // 2), like.new_empty(entries // 32, dtype=torch.int32)


def to_fragments(values: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
    """Arrange what ``pack_24`` returns.

    Args:
        values: ``(T, K)`` of 16 bits, T a multiple of 128, F of 64.
        meta: ``(T, M)`` uint8.

    Returns:
        Flat values and flat codes, as ``empty_fragments``.

    Raises:
        ValueError: Not whole blocks.
    """
    tokens, features = values.shape[0], 2 * values.shape[1]
    if tokens % TOKENS or features % FEATURES:
        raise ValueError(f"fragments are blocks of {TOKENS} tokens and {FEATURES} features, not {tokens} x {features}")
    lanes = values.reshape(tokens // 16, 2, 8, features // 32, 2, 4, 2).permute(0, 3, 2, 5, 4, 1, 6)
    words = meta.contiguous().view(torch.int16).view(tokens // 16, 2, 8, features // 64, 2, 2)
    codes = words.permute(0, 3, 2, 5, 4, 1).contiguous()
    return lanes.reshape(-1), codes.view(-1).view(torch.int32)


def from_fragments(values: Tensor, codes: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """The inverse: ``values (T, K)`` and ``meta (T, M)``, in whole blocks; ``features`` as they were before them."""
    features = round_up(features, FEATURES)
    tokens = 2 * values.numel() // features
    lanes = values.view(tokens // 16, features // 32, 8, 4, 2, 2, 2).permute(0, 5, 2, 1, 4, 3, 6)
    words = codes.view(torch.int16).view(tokens // 16, features // 64, 8, 2, 2, 2).permute(0, 5, 2, 1, 4, 3)
    meta = words.reshape(tokens, features // 16).contiguous().view(torch.uint8)
    return lanes.reshape(tokens, features // 2), meta
