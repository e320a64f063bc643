"""One optimizer object with two rules: its own for the matrices of the blocks, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class BlockOptimizer(torch.optim.Optimizer):
    """Parameter groups of several ``torch.optim`` optimizers in one, so that a trainer sees, steps and saves one.

    Groups and state live here alone; a *delegate* is an optimizer of torch's that is lent some of them for a
    step. So the schedule, a checkpoint and its loading need not know that there are several.

    Args:
        adamw: Built on what it is to update; its groups are taken over.
        groups: What the subclass updates by its own rule.
    """

    def __init__(self, adamw: torch.optim.AdamW, groups: list[dict[str, Any]]) -> None:
        self._adamw = adamw
        super().__init__([*adamw.param_groups, *groups], {})

    def groups(self, rule: str) -> list[dict[str, Any]]:
        """The parameter groups that go by a rule, in order; groups without a name for theirs go by ``adamw``."""
        return [group for group in self.param_groups if group.get("rule", "adamw") == rule]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step: AdamW's on its groups, the subclass's on the others.

        Args:
            closure: Computes loss and gradients, and its value is returned; None where they are there already.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._lend(self._adamw, self.groups("adamw"))
        self._step_blocks()
        return loss

    def _step_blocks(self) -> None:
        """Step the groups that do not go by AdamW."""
        raise NotImplementedError

    def _lend(self, delegate: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
        """Have a delegate step some groups; looked up anew each time, as loading a checkpoint replaces them."""
        delegate.param_groups, delegate.state = groups, self.state
        delegate.step()
