"""Tile sizes of the matrix kernels, by dtype and rank: the whole of what may be launched.

Each entry compiles for compute capability 8.0, 9.0 and 10.0 without register spills and within the shared
memory of each; ``tests/ops/kernels/test_ahead_of_time.py`` holds every one of them to that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Tiles:
    """One launch configuration.

    Attributes:
        tokens: Rows of a program.
        groups: Groups of four features a step (fused) or a program (others).
        depth: Step along the inner dimension; a fused kernel takes the whole rank at once.
        warps: Warps a program.
        stages: Depth of the software pipeline.
    """

    tokens: int
    groups: int
    depth: int
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, int]:
        """What a matrix kernel that steps along the inner dimension is launched with."""
        return {
            "BT": self.tokens,
            "BG": self.groups,
            "BK": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have; the interpreter on a CPU has no limit."""
    if device.type != "cuda":
        return 2**31
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def largest_fused_rank(dtype: torch.dtype, shared_bytes: int) -> int:
    """Up to which rank ``fused_kernel`` is launched: beyond, its tiles do not fit or registers spill.

    Rank 256 needs 192 KiB, which Hopper has and Ampere, with 163, has not.
    """
    if dtype == torch.float32:
        return 64
    return 256 if shared_bytes >= 200 * 2**10 else 128


def fused_tiles(dtype: torch.dtype, rank: int) -> Tiles:
    """For ``fused_kernel``, which takes the whole (padded) rank at once."""
    if dtype == torch.float32:
        return Tiles(tokens=32, groups=16, depth=rank, warps=8, stages=2)
    if rank <= 128:
        return Tiles(tokens=64, groups=8, depth=rank, warps=4, stages=3)
    return Tiles(tokens=128, groups=16, depth=rank, warps=8, stages=2)


def hidden_tiles(dtype: torch.dtype) -> Tiles:
    """For ``hidden_kernel`` and the one that writes the hardware's form, whose blocks these tiles divide."""
    if dtype == torch.float32:
        return Tiles(tokens=32, groups=16, depth=32, warps=8, stages=2)
    return Tiles(tokens=128, groups=32, depth=64, warps=8, stages=3)


def backward_tiles(dtype: torch.dtype) -> Tiles:
    """For ``hidden_backward_kernel``, which holds two accumulators."""
    if dtype == torch.float32:
        return Tiles(tokens=32, groups=16, depth=32, warps=8, stages=2)
    return Tiles(tokens=128, groups=16, depth=64, warps=8, stages=3)


def decode_tiles(dtype: torch.dtype) -> Tiles:
    """For ``decode_kernel``: few features a program, so that one token fills a GPU.

    Warps share columns out by 8, so that with more than two a group of four would be spread over several of them.
    """
    if dtype == torch.float32:
        return Tiles(tokens=16, groups=16, depth=32, warps=8, stages=2)
    return Tiles(tokens=16, groups=16, depth=64, warps=2, stages=2)


def decode_out(dtype: torch.dtype) -> int:
    """Output features a step of ``decode_kernel``."""
    return 64 if dtype == torch.float32 else 128


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"
