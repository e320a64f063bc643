"""Who takes part in the benchmarks: the baselines and every way an ELAS feed-forward network can be computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from elas_lightning.errors import UserError
from elas_lightning.nn import ModelConfig, SparsityConfig
from elas_lightning.ops.backend import BACKENDS

# name: hidden size, SwiGLU width, layers, heads, rank (ELAS, arXiv 2605.03667; 7B as in GaLore's family); smoke only
# tries the scripts
SHAPES = {
    "smoke": (64, 128, 2, 4, 16),
    "60m": (512, 1376, 8, 8, 128),
    "130m": (768, 2048, 12, 12, 256),
    "350m": (1024, 2736, 24, 16, 256),
    "1b": (2048, 5461, 24, 32, 512),
    "7b": (4096, 11008, 32, 32, 1024),
}
FULL, FULL_RELU2 = "full-rank SwiGLU", "full-rank ReLU²"
LOW, TWIN = "low-rank SwiGLU", "low-rank ReLU²"
STORAGES = ("dense", "packed", "recompute")


def baselines(shape: str, vocabulary: int = 32000, layers: int | None = None) -> dict[str, ModelConfig]:
    """The four models without 2:4, in plain PyTorch; the last is ELAS's dense twin."""
    hidden, intermediate, depth, heads, rank = SHAPES[shape]
    full: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_layers": layers or depth,
        "num_heads": heads,
        "backend": "reference",
    }
    low = {**full, "attention_rank": rank, "ffn_rank": rank}
    return {
        FULL: ModelConfig(**full),
        FULL_RELU2: ModelConfig(**full, ffn="relu2"),
        LOW: ModelConfig(**low),
        TWIN: ModelConfig(**low, ffn="relu2"),
    }


def elas(twin: ModelConfig) -> dict[str, ModelConfig]:
    """ELAS by every backend and storage, made from its dense twin; those that cannot run say so when built."""
    sparse = replace(twin, sparsity=SparsityConfig(placement=("ffn_hidden",)))
    return {
        f"ELAS, {backend}, {storage}": replace(sparse, backend=backend, ffn_storage=storage)
        for backend in BACKENDS
        if backend != "auto"
        for storage in STORAGES
    }


def asked_for(
    everyone: Mapping[str, ModelConfig], only: Collection[str] | None, always: Collection[str] = ()
) -> dict[str, ModelConfig]:
    """Those whose names contain a part of ``only``, all without one; ``always`` in any case.

    Raises:
        UserError: A part is in no name.
    """
    for part in only or ():
        if not any(part in name for name in everyone):
            raise UserError(f"--only {part}: no contender has this in its name; there are: {'; '.join(everyone)}")
    return {
        name: config
        for name, config in everyone.items()
        if name in always or not only or any(part in name for part in only)
    }
