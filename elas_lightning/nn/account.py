"""Parameters and FLOPs of a model from its configuration alone; nothing is allocated.

FLOPs are counted as two per multiply-add of the matrix products: linear layers, head and attention scores.
Attention is counted as the full T × T product, without the causal half that a kernel may skip, as PaLM's
utilisation (arXiv 2204.02311) and torch's ``FlopCounterMode`` do. 2:4 products count as dense ones: what
sparsity saves is measured, never assumed. Element-wise work, norms, softmax and the embedding's look-up are
not counted. Backward takes two products for each of forward's (one for the input, one for the weight);
recomputation, by checkpointing or inside a fused attention kernel, is not counted.
"""

from __future__ import annotations

from elas_lightning.nn.config import ModelConfig


def _matrix(d_in: int, d_out: int, rank: int | None) -> int:
    """Entries of one linear layer, which are also its multiply-adds for one token."""
    return d_in * d_out if rank is None else rank * (d_in + d_out)


def _matrices(config: ModelConfig) -> dict[str, int]:
    """Entries of all matrices that multiply, by part."""
    width, layers = config.hidden_size, config.num_layers
    ffn = _matrix(width, config.ffn_width, config.ffn_rank)
    return {
        "attention": layers * 4 * _matrix(width, width, config.attention_rank),
        "ffn": layers * (3 if config.gated else 2) * ffn,
        "head": config.vocab_size * width,
    }


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Count parameters.

    Args:
        config: The model.

    Returns:
        ``embedding``, ``attention``, ``ffn``, ``norms``, ``head`` and their sum ``total``.
    """
    parts = {
        "embedding": config.vocab_size * config.hidden_size,
        **_matrices(config),
        "norms": (2 * config.num_layers + 1) * config.hidden_size,
    }
    return {**parts, "total": sum(parts.values())}


def flops_per_token(config: ModelConfig, sequence_length: int) -> dict[str, int]:
    """Count the floating-point operations of training on one token; the file's top says what counts.

    Args:
        config: The model.
        sequence_length: T, which attention scores grow with.

    Returns:
        Forward by part (``attention``, ``attention_scores``, ``ffn``, ``head``), their sum ``forward``,
        ``backward``, and ``total``, forward and backward together.
    """
    parts = {part: 2 * entries for part, entries in _matrices(config).items()}
    # q·k and weights·v, each T × C multiply-adds for a token
    parts["attention_scores"] = config.num_layers * 2 * 2 * sequence_length * config.hidden_size
    forward = sum(parts.values())
    return {**parts, "forward": forward, "backward": 2 * forward, "total": 3 * forward}
