"""Mixtures of experts: a frozen dataclass, part of ``nn/config.py``'s ``ModelConfig``.

``from __future__ import annotations`` is absent on purpose: the command line reads the annotations at run time.
"""

from dataclasses import dataclass

from elas_lightning.nn.checks import check_int, check_not_negative, refuse


@dataclass(frozen=True)
class ExpertsConfig:
    """How many feed-forward networks a layer has, and how many of them a token goes through.

    Attributes:
        count: Experts of a layer, each a whole FFN of the configured width and rank; 1 is a plain FFN without a router.
        per_token: Experts that each token goes through.
        balance: Coefficient of the load-balancing loss (Switch Transformer, arXiv 2101.03961, equation 4), which is
            added to the training loss for each layer; 0 leaves routing to the model's own loss.
    """

    count: int = 1
    per_token: int = 1
    balance: float = 0.01

    def __post_init__(self) -> None:
        check_int("experts.count", self.count, 1)
        check_int("experts.per_token", self.per_token, 1)
        if self.per_token > self.count:
            raise refuse("experts.per_token", self.per_token, f"a layer has {self.count} (experts.count)")
        check_not_negative("experts.balance", self.balance)
