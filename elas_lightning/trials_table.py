"""What ``trials.csv`` says of a run: a sweep writes it and the analysis reads it, neither of which needs the other."""

from collections.abc import Iterable

STATES = ("complete", "diverged", "failed", "pruned")
METRICS = (
    "val_loss",
    "val_perplexity",
    "val_bits_per_byte",
    "tokens",
    "seconds",
    "tokens_per_second",
    "parameters",
    "flops_per_token",
    "peak_memory_bytes",
)


def columns(searched: Iterable[str] = ()) -> list[str]:
    """All columns in their order, ``searched`` being the names of a sweep's dimensions."""
    return ["trial", "seed", "state", *searched, *METRICS, "run", "reason"]
