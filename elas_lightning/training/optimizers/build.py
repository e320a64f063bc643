"""From a model and a configuration to one optimizer, its parameter groups and its schedule."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from elas_lightning.errors import UserError
from elas_lightning.nn.experts import Router
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers.config import OptimizerConfig
from elas_lightning.training.optimizers.galore import GaLore
from elas_lightning.training.optimizers.loro import LORO
from elas_lightning.training.optimizers.muon import Muon
from elas_lightning.training.optimizers.schedule import learning_rate_factor


def build_optimizer(
    model: Llama, config: OptimizerConfig, total_steps: int, *, fused: bool = True
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """One optimizer over all parameters of ``model`` and its schedule, to be stepped once an optimizer step.

    The first parameter group learns at the nominal rate, which is the one to log.

    Args:
        model: What is trained.
        config: Which optimizer; rates, decay and schedule.
        total_steps: Optimizer steps of the run.
        fused: One kernel for AdamW's whole update; not compatible with gradient clipping under a float16 scaler.

    Raises:
        UserError: The run has no length or is all warm-up, or the optimizer does not suit the model.
    """
    config.check_length(total_steps)
    head = list(model.lm_head.parameters())
    apart = [m for m in model.layers.modules() if isinstance(m, nn.RMSNorm | Router)]
    other = {id(p) for m in apart for p in m.parameters()}
    learning = [p for p in model.layers.parameters() if id(p) not in other]
    blocks = [p for p in learning if p.ndim == 2]
    entries = [p for p in learning if p.ndim != 2]  # of a sparse matrix, as vectors (SLTrain)
    chosen = {id(p) for p in (*head, *learning)}
    others = [p for p in model.parameters() if id(p) not in chosen]  # embedding, norms and routers
    decay = config.weight_decay
    plain: list[dict[str, Any]] = [{"params": head, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if entries:
        plain.append({"params": entries, "weight_decay": decay, "lr": config.block_lr_ratio * config.lr})
    assert sum(map(len, (head, others, blocks, entries))) == len(list(model.parameters()))

    optimizer = _optimizer(model, config, plain, blocks, fused)
    factor = partial(
        learning_rate_factor,
        total_steps=total_steps,
        warmup_steps=config.warmup_steps,
        min_lr_ratio=config.min_lr_ratio,
        restart_every=config.restart_every if config.schedule == "cosine_restarts" else None,
        restart_warmup_steps=config.restart_warmup_steps,
    )
    return optimizer, LambdaLR(optimizer, factor)


def _optimizer(
    model: Llama, config: OptimizerConfig, plain: list[dict[str, Any]], blocks: list[nn.Parameter], fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of ``config.name``: AdamW on the groups ``plain``, its own rule on ``blocks``."""
    block_lr = config.block_lr_ratio * config.lr
    group = {"params": blocks, "weight_decay": config.weight_decay, "lr": block_lr}
    adamw = partial(torch.optim.AdamW, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    match config.name:
        case "adamw":
            return adamw([*plain, group])
        case "loro":
            pairs = _factor_pairs(model)
            paired = {id(p) for pair in pairs for p in pair}
            rest = [p for p in blocks if id(p) not in paired]
            if rest:  # layers at full rank, where only attention or only the FFN is factored
                plain = [*plain, {**group, "params": rest}]
            factors = {**group, "params": [p for pair in pairs for p in pair]}
            return LORO(
                adamw([*plain, factors]),
                restart_every=config.restart_every,
                direction=config.loro_direction,
                reset=config.loro_reset,
                exact_lr_ratio=config.loro_exact_lr_ratio / config.block_lr_ratio,
            )
        case "muon":
            return Muon(adamw(plain), group, momentum=config.muon_momentum, ns_steps=config.muon_ns_steps)
        case "galore":
            assert config.galore_rank is not None
            smallest = min(min(p.shape) for p in blocks)
            if config.galore_rank >= smallest:
                raise UserError(
                    f"model.optimizer.galore_rank is {config.galore_rank} but a matrix of the blocks has only "
                    f"{smallest} rows or columns: choose a smaller rank, or full-rank layers "
                    "(methods/galore.yaml)"
                )
            return GaLore(
                adamw(plain),
                group,
                rank=config.galore_rank,
                update_every=config.galore_update_every,
                scale=config.galore_scale,
                betas=config.betas,
                eps=config.eps,
            )


def _factor_pairs(model: Llama) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """``(B, A)`` of every low-rank layer, whose product LORO moves; refuses layers that are no product."""
    pairs = [(m.B, m.A) for m in model.layers.modules() if isinstance(m, LowRankLinear)]
    if not pairs:
        raise UserError(
            "model.optimizer.name is loro but no layer has factors: set model.config.attention_rank or "
            "model.config.ffn_rank, or choose adamw"
        )
    between = None
    if model.config.weights.method != "plain":
        between = f"model.config.weights.method = {model.config.weights.method}"
    elif model.config.bottleneck_activation is not None:
        between = f"model.config.bottleneck_activation = {model.config.bottleneck_activation}"
    elif "ffn_bottleneck" in model.config.sparsity.placement:
        between = "ffn_bottleneck in model.config.sparsity.placement"
    if between is not None:
        raise UserError(
            f"model.optimizer.name is loro but {between} stands between the factors, which then are no product "
            "that it could move: choose adamw or muon"
        )
    return pairs
