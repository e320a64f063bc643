"""The measured quantities: what an axis calls them, in which unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elas_lightning.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A column of the result files.

    Args:
        column: its name there.
        label: axis label with the unit.
        noun: how a sentence calls it.
        lower_is_better: which way is better.
        scale: factor from the stored to the shown unit.
        from_zero: True for amounts, where half the bar should mean half as much. The quality metrics have no
            meaningful zero within reach, so bars would only hide the differences.
        difference: how two values are compared: losses are logarithms already.
    """

    column: str
    label: str
    noun: str
    lower_is_better: bool = True
    scale: float = 1.0
    from_zero: bool = False
    difference: Literal["%", "absolute"] = "%"

    @property
    def better(self) -> str:
        """Which way is better, for an axis."""
        return "lower" if self.lower_is_better else "higher"

    @property
    def sign(self) -> int:
        """Factor after which less is better."""
        return 1 if self.lower_is_better else -1


_METRICS = {
    metric.column: metric
    for metric in (
        Metric("val_perplexity", "Validation perplexity", "validation perplexity"),
        Metric("val_loss", "Validation loss (nats per token)", "validation loss", difference="absolute"),
        Metric("train_loss", "Training loss (nats per token)", "training loss", difference="absolute"),
        Metric("val_bits_per_byte", "Validation bits per byte", "validation bits per byte"),
        Metric("tokens_per_second", "Training speed (tokens/s)", "training speed", False, from_zero=True),
        Metric("seconds", "Time of a run (s)", "time of a run", from_zero=True),
        Metric("tokens", "Training tokens (millions)", "number of training tokens", False, 1e-6, True),
        Metric("parameters", "Parameters (millions)", "number of parameters", True, 1e-6, True),
        Metric("flops_per_token", "Training FLOPs per token (millions)", "compute per token", True, 1e-6, True),
        Metric("peak_memory_bytes", "Peak memory (MB)", "peak memory", True, 1e-6, True),
    )
}


def metric_of(column: str) -> Metric:
    """Look a metric up by its column.

    Raises:
        UserError: if the result files have no such metric.
    """
    if column not in _METRICS:
        raise UserError(f"plots: metric {column!r} is unknown; allowed: {', '.join(_METRICS)}.")
    return _METRICS[column]
