"""How much an optimizer remembers, from configurations alone; nothing is allocated.

Counted are entries of the size of a matrix or a vector. A counter of steps for each tensor, which is a single
number, is not.
"""

from __future__ import annotations

from elas_lightning.nn.account import count_parameters
from elas_lightning.nn.account.parameters import ffn_matrices, router_entries
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.weights_config import sltrain_entries
from elas_lightning.training.optimizers.config import OptimizerConfig


def matrix_state_entries(optimizer: OptimizerConfig, rows: int, columns: int) -> int:
    """What is remembered of one matrix of the blocks, a full-rank weight or one factor.

    Args:
        optimizer: Whose memory.
        rows: Of the matrix.
        columns: Of the matrix.

    Returns:
        Entries: two moments for AdamW and LORO, one for Muon; for GaLore (arXiv 2403.03507, table 1) two moments
        of the larger dimension times the rank, and the projector of the smaller one times the rank.
    """
    match optimizer.name:
        case "adamw" | "loro":
            return 2 * rows * columns
        case "muon":
            return rows * columns
        case "galore":
            assert optimizer.galore_rank is not None
            return optimizer.galore_rank * (2 * max(rows, columns) + min(rows, columns))


def _linear(optimizer: OptimizerConfig, d_in: int, d_out: int, rank: int | None) -> int:
    if rank is None:
        return matrix_state_entries(optimizer, d_out, d_in)
    return matrix_state_entries(optimizer, d_out, rank) + matrix_state_entries(optimizer, rank, d_in)


def optimizer_state_entries(optimizer: OptimizerConfig, model: ModelConfig) -> dict[str, int]:
    """Entries of an optimizer's state for a whole model; times the bytes of a parameter's dtype, its memory.

    Args:
        optimizer: Whose memory.
        model: Of what.

    Returns:
        ``embedding``, ``attention``, ``ffn``, ``norms``, ``head`` and their sum ``total``.
    """
    parameters = count_parameters(model)
    width, layers = model.hidden_size, model.num_layers
    up = _linear(optimizer, width, model.ffn_width, model.ffn_rank)
    down = _linear(optimizer, model.ffn_width, width, model.ffn_rank)
    matrices = ffn_matrices(model)
    expert = (matrices - 1) * up + down
    parts = {
        # AdamW, whatever the blocks go by; so do routers
        **{part: 2 * parameters[part] for part in ("embedding", "norms", "head")},
        "attention": layers * 4 * _linear(optimizer, width, width, model.attention_rank),
        "ffn": layers * (model.experts.count * expert + 2 * router_entries(model)),
    }
    if model.weights.method == "sltrain":  # its sparse entries are a vector, which goes by AdamW
        for part, count, d_out in (("attention", 4, width), ("ffn", matrices, model.ffn_width)):
            parts[part] += 2 * layers * count * sltrain_entries(model.weights, width, d_out)
    return {**parts, "total": sum(parts.values())}
