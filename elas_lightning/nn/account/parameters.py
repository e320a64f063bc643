"""Parameters of a model from its configuration alone."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.weights_config import LayerEntries, Part, layer_entries

PARTS: tuple[Part, ...] = get_args(Part)


def ffn_matrices(config: ModelConfig) -> int:
    """Matrices of one FFN: up and down, and a gate where there is one."""
    return 3 if config.gated else 2


def router_entries(config: ModelConfig) -> int:
    """Entries of one block's router, 0 where it has one FFN."""
    return config.experts.count * config.hidden_size if config.experts.count > 1 else 0


def block_layers(config: ModelConfig, part: Part) -> list[LayerEntries]:
    """What each linear layer of one block consists of: q, k, v and o, or (gate,) up and down of one expert."""
    width, hidden = config.hidden_size, config.ffn_width
    shapes = [(width, width)] * 4
    if part == "ffn":
        shapes = [(width, hidden)] * (ffn_matrices(config) - 1) + [(hidden, width)]
    rank = config.attention_rank if part == "attention" else config.ffn_rank
    return [layer_entries(config.weights, part, d_in, d_out, rank) for d_in, d_out in shapes]


def block_entries(config: ModelConfig, part: Part) -> LayerEntries:
    """The sums of ``block_layers`` over all experts and decoder blocks, with the routers."""
    layers, sums = block_layers(config, part), {}
    for name in (field.name for field in fields(LayerEntries)):
        entries = sum(getattr(layer, name) for layer in layers)
        if part == "ffn":
            entries *= config.experts.per_token if name == "multiply_adds" else config.experts.count
            entries += 0 if name == "composition" else router_entries(config)
        sums[name] = config.num_layers * entries
    return LayerEntries(**sums)


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Count the parameters that training stores, learning or not.

    Args:
        config: The model.

    Returns:
        ``embedding``, ``attention``, ``ffn``, ``norms``, ``head`` and their sum ``total``.
    """
    return parameter_account(config)["stored"]


def parameter_account(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Count parameters in three senses, which differ for methods that act on weights.

    Args:
        config: The model.

    Returns:
        ``stored`` (in training, learning or frozen), ``trained`` (by the optimizer; ReLoRA: after its full-rank
        cycles) and ``deployed`` (what is left after training, without zeros and without masks), each by part as
        ``count_parameters``.
    """
    table = config.vocab_size * config.hidden_size
    of_part = {part: block_entries(config, part) for part in PARTS}
    account = {}
    for sense in ("stored", "trained", "deployed"):
        parts: dict[str, int] = {
            "embedding": table,
            **{part: getattr(entries, sense) for part, entries in of_part.items()},
            "head": table,
            "norms": (2 * config.num_layers + 1) * config.hidden_size,
        }
        account[sense] = {**parts, "total": sum(parts.values())}
    return account
