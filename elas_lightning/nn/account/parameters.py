"""Parameters of a model from its configuration alone."""

from __future__ import annotations

from elas_lightning.nn.config import ModelConfig


def matrix_entries(d_in: int, d_out: int, rank: int | None) -> int:
    """Entries of one linear layer, which are also its multiply-adds for one token."""
    return d_in * d_out if rank is None else rank * (d_in + d_out)


def ffn_matrices(config: ModelConfig) -> int:
    """Matrices of one FFN: up and down, and a gate where there is one."""
    return 3 if config.gated else 2


def block_matrices(config: ModelConfig) -> dict[str, int]:
    """Entries of the matrices of all decoder blocks, ``attention`` and ``ffn``."""
    width, layers = config.hidden_size, config.num_layers
    ffn = matrix_entries(width, config.ffn_width, config.ffn_rank)
    return {
        "attention": layers * 4 * matrix_entries(width, width, config.attention_rank),
        "ffn": layers * ffn_matrices(config) * ffn,
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
        **block_matrices(config),
        "head": config.vocab_size * config.hidden_size,
        "norms": (2 * config.num_layers + 1) * config.hidden_size,
    }
    return {**parts, "total": sum(parts.values())}
