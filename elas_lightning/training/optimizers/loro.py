"""LORO: Adam on factors, and every K steps one exact step on their product."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from elas_lightning.training.optimizers.blocks import BlockOptimizer
from elas_lightning.training.optimizers.config import LoroDirection, LoroReset
from elas_lightning.training.optimizers.moments import adam_direction, reset_moments
from elas_lightning.training.optimizers.riemannian import riemannian_step
from elas_lightning.training.optimizers.whole import shard_like, whole


class LORO(BlockOptimizer):
    """LORO (Mo, Huang & Pan, ICLR 2025; released code mzf666/LORO-main) on factors, AdamW on the rest.

    LORO's: Adam on each factor at ordinary steps, at rank / width times the rate. Every K-th step is exact
    (:func:`~elas_lightning.training.optimizers.riemannian.riemannian_step`), at the full rate; its factors come
    back balanced, and then moments are forgotten, in the published runs those of all parameters. There is no
    momentum across exact steps. The exact step is not one along the gradient: the released code puts the
    factors' Adam directions where their gradients belong (``direction="adam"``), so that it depends on how the
    product is split, and grows where a factor is nearly singular.

    Ours: ``direction="gradient"`` takes the gradients of the step themselves, which makes it the manifold's
    steepest descent and independent of the split; ``reset="factors"`` spares embedding, head and norms. Adam's
    moments are corrected for their bias as torch does, with ε beside the corrected second one; directions in
    which a factor has vanished are left out of the projection; weight decay reaches the product as it would
    at an ordinary step.

    The count of steps is the optimizer's own, saved with it; a step that a float16 scaler skips is not counted,
    while the schedule's restarts count it. Where parameters are sharded the factors of a layer are gathered for their
    exact step (``whole.py``); moments stay sharded.

    Args:
        adamw: Built on everything; its last group holds ``B, A, B, A, …``, layer by layer.
        restart_every: K.
        direction: What the exact step takes for the factors' gradients.
        reset: Whose moments are forgotten after it.
        exact_lr_ratio: Rate of the exact step, by that of the factors.
    """

    def __init__(
        self,
        adamw: torch.optim.AdamW,
        *,
        restart_every: int,
        direction: LoroDirection,
        reset: LoroReset,
        exact_lr_ratio: float,
    ) -> None:
        super().__init__(adamw, [])
        own = {"direction": direction, "reset": reset, "exact_lr_ratio": exact_lr_ratio}
        self.param_groups[-1].update(rule="factors", restart_every=restart_every, steps=0, **own)

    def _step_blocks(self) -> None:
        (group,) = self.groups("factors")
        group["steps"] += 1
        if group["steps"] % group["restart_every"]:
            self._lend(self._adamw, [group])
            return
        factors = group["params"]
        for B_OR, A_RI in zip(factors[0::2], factors[1::2], strict=True):
            if B_OR.grad is not None and A_RI.grad is not None:
                self._step_product(B_OR, A_RI)
        forgetful = [group] if group["reset"] == "factors" else self.param_groups
        reset_moments(self, chain.from_iterable(each["params"] for each in forgetful))

    def _step_product(self, B_OR: Tensor, A_RI: Tensor) -> None:
        """The exact step on one layer, in float32 at least."""
        (group,) = self.groups("factors")
        gradients = (self._gradient(B_OR, group), self._gradient(A_RI, group))
        wide = torch.promote_types(B_OR.dtype, torch.float32)
        B, A, gradient_B, gradient_A = (whole(tensor).to(wide) for tensor in (B_OR, A_RI, *gradients))
        new_B, new_A = riemannian_step(B, A, gradient_B, gradient_A, group["lr"] * group["exact_lr_ratio"])
        decay = 1 - group["lr"] * group["weight_decay"]
        B_OR.copy_(shard_like(decay * new_B, B_OR))
        A_RI.copy_(shard_like(decay * new_A, A_RI))

    def _gradient(self, factor: Tensor, group: dict[str, Any]) -> Tensor:
        """What the exact step takes for a factor's gradient."""
        assert factor.grad is not None
        if group["direction"] == "gradient":
            return factor.grad
        return adam_direction(factor.grad, self.state[factor], betas=group["betas"], eps=group["eps"])
