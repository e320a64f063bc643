"""The figures a sweep may look at, which way each is better, and what a point comes to in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["minimize", "maximize"]
OBJECTIVES: dict[str, Direction] = {
    "val_perplexity": "minimize",
    "val_loss": "minimize",
    "val_bits_per_byte": "minimize",
    "tokens_per_second": "maximize",
    "peak_memory_bytes": "minimize",
    "flops_per_token": "minimize",
    "parameters": "minimize",
    "seconds": "minimize",
}
QUALITY = ("val_perplexity", "val_loss", "val_bits_per_byte")  # what validations tell during a run


@dataclass(frozen=True)
class Objective:
    """A figure of a run, and which way is better."""

    name: str
    direction: Direction

    @property
    def worst(self) -> float:
        """What nothing is worse than."""
        return float("inf") if self.direction == "minimize" else -float("inf")

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value is strictly better than another."""
        return value < than if self.direction == "minimize" else value > than


def values_of(objectives: Sequence[Objective], runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """What a point comes to: the mean over its seeds of each objective.

    With one seed diverged it is the worst in all of them, not only in those that it lacks: a model that learnt nothing
    must not stand on the front for being fast. A figure that no run of the machine has (peak memory on some) counts as
    the worst, too.

    Args:
        objectives: What the sweep looks at.
        runs: The metrics of the point's runs.
    """
    columns: list[list[Any]] = [[metrics.get(objective.name) for metrics in runs] for objective in objectives]
    if any(value is None for column in columns for value in column):
        return [objective.worst for objective in objectives]
    return [sum(column) / len(column) for column in columns]
