"""Bytes of a training step and of generation, from the model's configuration alone."""

from __future__ import annotations

from typing import Any

from elas_lightning.nn.account.activations import activations, block_bytes
from elas_lightning.nn.account.parameters import (
    PARTS,
    block_entries,
    block_layers,
    ffn_matrices,
    parameter_account,
    router_entries,
)
from elas_lightning.nn.account.step import TrainingStep
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.loss import chunk_rows
from elas_lightning.nn.weights_config import COMPOSED, SPARSE_24, sltrain_entries


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


def _weight_copies(config: ModelConfig, step: TrainingStep) -> int:
    """Bytes of what one block makes of its weights for its products, and keeps for backward."""
    method = config.weights.method
    made = 4 * router_entries(config) if step.parameter_bytes < 4 else 0  # routers work in float32
    for part in PARTS:
        sparse = method in SPARSE_24 and config.weights.reaches(part)
        experts = config.experts.count if part == "ffn" else 1
        for layer in experts * block_layers(config, part):
            if step.mixed or sparse or method in COMPOSED:
                made += step.product_bytes * layer.multiply_adds
            if step.mixed and method in COMPOSED:  # the factors, before they are multiplied
                sides = config.hidden_size + (config.ffn_width if part == "ffn" else config.hidden_size)
                made += 2 * sides * layer.composition // layer.multiply_adds
    return made


def _buffers(config: ModelConfig) -> int:
    """Bytes that lie beside the weights throughout: masks of a byte an entry, indices of eight."""
    method = config.weights.method
    if method in ("sr_ste", "transposable", "asp"):
        entries = 0
        for part in PARTS:
            if config.weights.reaches(part):
                entries += block_entries(config, part).stored
        return entries
    if method == "sltrain":
        width, hidden = config.hidden_size, config.ffn_width
        support = 4 * sltrain_entries(config.weights, width, width)
        support += ffn_matrices(config) * sltrain_entries(config.weights, width, hidden)
        return 8 * config.num_layers * support
    return 0


def memory_account(config: ModelConfig, step: TrainingStep, optimizer_entries: int | None = None) -> dict[str, Any]:
    """Count the bytes of training, on one device and without sharding.

    Weights, gradients and optimizer state are there throughout (gradients from the first backward on);
    activations from forward to backward. The sum of these and the largest of what comes and goes is ``total``:
    an upper bound on what is allocated, since activations leave as backward goes on.

    Args:
        config: The model.
        step: The micro-batch.
        optimizer_entries: Entries of the optimizer's state, stored as the parameters are. None: AdamW's two for each
            that learns. Its step counters are left out.

    Returns:
        ``weights`` (with masks and indices), ``gradients``, ``optimizer``, ``weight_copies`` (of the blocks'
        matrices, kept for backward: autocast's in 16 bits, and those that a method of ``config.weights`` makes;
        with checkpointing only a block's at a time), ``activations`` and ``activations_by_kind``, ``logits``
        (of one chunk, while head and loss run), ``recomputed`` (the largest block, while backward has it again), and
        ``total``. In bytes.
    """
    parameters = parameter_account(config)
    stored, trained = parameters["stored"]["total"], parameters["trained"]["total"]
    width = step.parameter_bytes
    by_kind: dict[str, int] = {}
    for tensor in activations(config, step):
        by_kind[tensor.kind] = by_kind.get(tensor.kind, 0) + tensor.bytes
    copies, recomputed = _weight_copies(config, step), 0
    if step.checkpointing != "none":
        recomputed = copies + max(block_bytes(config, step, layer) for layer in range(config.num_layers))
        copies = 0
    account = {
        "weights": width * stored + _buffers(config),
        "gradients": width * trained,
        "optimizer": width * (2 * trained if optimizer_entries is None else optimizer_entries),
        "weight_copies": config.num_layers * copies,
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
