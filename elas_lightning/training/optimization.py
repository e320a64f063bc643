"""AdamW and the learning-rate schedule: linear warm-up, then a cosine down to a fraction of the peak."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from elas_lightning.errors import UserError
from elas_lightning.nn.llama import Llama


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Args:
        lr: Peak learning rate.
        block_lr_ratio: The matrices of the decoder blocks (attention and FFN, factors or full) learn at
            ``block_lr_ratio * lr``; embedding, head and norms at ``lr``. LORO (ICLR 2025) scales its factors
            by rank / width, which is a quarter at most of the paper's sizes.
        warmup_steps: Optimizer steps of linear warm-up from 0 to ``lr``.
        min_lr_ratio: The cosine ends at ``min_lr_ratio * lr`` at the last step.
        weight_decay: Decoupled weight decay of matrices; norms and embeddings have none.
        betas: Decay of AdamW's two moments.
        eps: AdamW's denominator term.
    """

    lr: float = 1e-3
    block_lr_ratio: float = 1.0
    warmup_steps: int = 1000
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"model.optimizer.lr is {self.lr}: it must be a finite number above 0")
        if not 0 < self.block_lr_ratio <= 1:
            raise UserError(f"model.optimizer.block_lr_ratio is {self.block_lr_ratio}: it must lie in (0, 1]")
        if self.warmup_steps < 0:
            raise UserError(f"model.optimizer.warmup_steps is {self.warmup_steps}: it must be 0 or more")
        if not 0 <= self.min_lr_ratio <= 1:
            raise UserError(f"model.optimizer.min_lr_ratio is {self.min_lr_ratio}: it must lie in [0, 1]")
        if self.weight_decay < 0:
            raise UserError(f"model.optimizer.weight_decay is {self.weight_decay}: it must be 0 or more")


def learning_rate_factor(step: int, *, total_steps: int, warmup_steps: int, min_lr_ratio: float) -> float:
    """Fraction of the peak learning rate at an optimizer step.

    Args:
        step: Optimizer steps already taken (0 at the first).
        total_steps: Steps of the whole run; from there on the rate stays at its minimum.
        warmup_steps: Steps of linear warm-up.
        min_lr_ratio: Where the cosine ends.

    Returns:
        A factor in (0, 1].
    """
    if step < warmup_steps:
        # step + 1: the first step moves the weights too, and step `warmup_steps - 1` already has the peak rate
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    model: Llama, config: OptimizerConfig, total_steps: int, *, fused: bool = True
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over all parameters of ``model`` and its schedule, to be stepped once an optimizer step.

    The first parameter group learns at the nominal rate, which is the one to log.

    Args:
        model: What is trained.
        config: Rates, decay and schedule.
        total_steps: Optimizer steps of the run.
        fused: One kernel for the whole update; not compatible with gradient clipping under a float16 scaler.

    Raises:
        UserError: The warm-up is longer than the run.
    """
    if config.warmup_steps >= total_steps:
        raise UserError(
            f"model.optimizer.warmup_steps is {config.warmup_steps} but the run has {total_steps} steps "
            "(trainer.max_steps): shorten the warm-up or lengthen the run"
        )
    head = list(model.lm_head.parameters())
    blocks = [p for p in model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in (*head, *blocks)}
    others = [p for p in model.parameters() if id(p) not in chosen]  # embedding and norms
    decay, block_lr = config.weight_decay, config.block_lr_ratio * config.lr
    groups: list[dict[str, Any]] = [
        {"params": head, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
        {"params": blocks, "weight_decay": decay, "lr": block_lr},
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))

    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    schedule = LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            step,
            total_steps=total_steps,
            warmup_steps=config.warmup_steps,
            min_lr_ratio=config.min_lr_ratio,
        ),
    )
    return optimizer, schedule
