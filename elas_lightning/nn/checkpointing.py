"""What backward computes again: a decoder block from its input, or from its low-rank bottlenecks.

``block`` is ordinary activation checkpointing: of each block only its input is kept. ``bottleneck`` is CoLA-M's
(arXiv 2502.10940, section 4): the rank-sized result of each layer's first factor is kept too, so that
backward repeats the second factors and attention, but not the first factors. The paper keeps the residual stream
between attention and FFN as well (``2 n d + 7 n r`` of a gated block, n tokens); here it is computed again by one
more second factor (``n d + 7 n r``).

Both are torch's checkpoint. What is computed again is the same arithmetic, so gradients are those without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from elas_lightning.nn.config import ModelConfig


def run_block(block: Callable[..., Tensor], config: ModelConfig, *arguments: Any) -> Tensor:
    """Call a decoder block so that backward keeps what ``config.checkpointing`` says.

    Args:
        block: What to call.
        config: ``checkpointing``, and the ranks that tell a bottleneck.
        arguments: Of ``block``.

    Returns:
        What ``block`` returns; called as it is where no gradients are asked for.
    """
    if config.checkpointing == "none" or not torch.is_grad_enabled():
        return block(*arguments)
    # nothing in a block draws random numbers
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if config.checkpointing == "bottleneck":
        keep = partial(_keep_bottlenecks, frozenset({config.attention_rank, config.ffn_rank}))
        how["context_fn"] = partial(create_selective_checkpoint_contexts, keep)
    return checkpoint(block, *arguments, **how)


def _keep_bottlenecks(
    ranks: frozenset[int | None], context: Any, operation: Any, *arguments: Any, **_: Any
) -> CheckpointPolicy:
    """Keep a matrix product that ends in as many columns as a layer's rank: a first factor's.

    A model whose rank is also its width keeps second factors' products as well, which is more memory and no error.
    """
    product = operation is torch.ops.aten.mm.default and arguments[1].shape[1] in ranks
    return CheckpointPolicy.MUST_SAVE if product else CheckpointPolicy.PREFER_RECOMPUTE
