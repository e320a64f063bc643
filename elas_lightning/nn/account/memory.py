"""Bytes of a training step and of generation, from the model's configuration alone."""

from __future__ import annotations

from typing import Any

from elas_lightning.nn.account.activations import activations, block_bytes
from elas_lightning.nn.account.parameters import block_matrices, count_parameters
from elas_lightning.nn.account.step import TrainingStep
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.loss import chunk_rows


def _logits(config: ModelConfig, step: TrainingStep) -> int:
    """The chunk of logits that exists at once: as the product leaves it, and its log-probabilities in float32.

    A CPU copies them to float32 in between, where a GPU's softmax does so by itself. From the second chunk on, the
    gradient of the one before is still there.
    """
    rows = chunk_rows(config.vocab_size, step.device)
    chunk = min(rows, step.tokens) * config.vocab_size
    full = step.precision == "32-true"
    copy = 0 if full or step.device == "cuda" else 4
    before = 0 if step.tokens <= rows else 4 if full else 6
    return chunk * (step.product_bytes + copy + 4 + before)


def memory_account(
    config: ModelConfig, step: TrainingStep, optimizer_entries: int | None = None
) -> dict[str, Any]:
    """Count the bytes of training, on one device and without sharding.

    Weights, gradients and optimizer state are there throughout (gradients from the first backward on);
    activations from forward to backward. The sum of these and the largest of what comes and goes is ``total``:
    an upper bound on what is allocated, since activations leave as backward goes on.

    Args:
        config: The model.
        step: The micro-batch.
        optimizer_entries: Entries of the optimizer's state, stored as the parameters are. None: AdamW's two a
            parameter. Its step counters are left out.

    Returns:
        ``weights``, ``gradients``, ``optimizer``, ``weight_casts`` (autocast's copies of the blocks' matrices,
        kept for backward; with checkpointing only a block's at a time), ``activations`` and
        ``activations_by_kind``, ``logits`` (of one chunk, while head and loss run), ``recomputed`` (the
        largest block, while backward has it again), and ``total``. In bytes.
    """
    parameters = count_parameters(config)["total"]
    width = step.parameter_bytes
    kept = activations(config, step)
    by_kind: dict[str, int] = {}
    for tensor in kept:
        by_kind[tensor.kind] = by_kind.get(tensor.kind, 0) + tensor.bytes
    casts = 2 * sum(block_matrices(config).values()) if step.mixed else 0
    recomputed = 0
    if step.checkpointing != "none":
        recomputed = max(block_bytes(config, step, layer) for layer in range(config.num_layers))
        recomputed += casts // config.num_layers
        casts = 0
    account = {
        "weights": width * parameters,
        "gradients": width * parameters,
        "optimizer": width * (2 * parameters if optimizer_entries is None else optimizer_entries),
        "weight_casts": casts,
        "activations": sum(by_kind.values()),
    }
    logits = _logits(config, step)
    return {
        **account,
        "activations_by_kind": by_kind,
        "logits": logits,
        "recomputed": recomputed,
        "total": sum(account.values()) + max(logits, recomputed),
    }


def kv_cache_bytes(config: ModelConfig, batch: int, sequence: int, entry_bytes: int = 2) -> int:
    """Bytes of the keys and values of all layers that generation keeps.

    Args:
        config: The model.
        batch: Sequences.
        sequence: Tokens of each.
        entry_bytes: Of one entry; 2 in bfloat16.
    """
    return 2 * config.num_layers * batch * sequence * config.hidden_size * entry_bytes
