"""The learning rate over a run: linear warm-up, one cosine down to a fraction of the peak, and restarts on it."""

from __future__ import annotations

import math


def learning_rate_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    min_lr_ratio: float,
    restart_every: int | None = None,
    restart_warmup_steps: int = 5,
) -> float:
    """Fraction of the peak learning rate at an optimizer step.

    With restarts the cosine is still one over the whole run, and each restart climbs back to it from near zero
    within a few steps: the jagged cosine of ReLoRA (arXiv 2307.05695), which LORO's released code uses too. It
    gives Adam's second moments, which both methods reset at a restart, the time to fill.

    Args:
        step: Optimizer steps already taken (0 at the first).
        total_steps: Steps of the whole run; from there on the rate stays at its minimum.
        warmup_steps: Steps of linear warm-up.
        min_lr_ratio: Where the cosine ends.
        restart_every: Steps from one restart to the next, the first of them after as many; None: no restarts.
        restart_warmup_steps: Steps of linear warm-up after each restart.

    Returns:
        A factor, at most 1; 0 only where ``min_lr_ratio`` is.
    """
    # step + 1: the first step moves the weights too, and step `warmup_steps - 1` already has the peak rate
    ramp = 1.0
    if restart_every is not None and step >= restart_every and restart_warmup_steps:
        ramp = min(1.0, (step % restart_every + 1) / restart_warmup_steps)
    if step < warmup_steps:
        return ramp * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return ramp * (min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
