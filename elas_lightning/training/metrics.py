"""Loss over real tokens, and what is derived from it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

# What an ``ElasModule`` logs, and callbacks can monitor.
LOGGED = (
    "train_loss", "val_loss", "val_perplexity", "val_perplexity_galore_protocol", "val_bits_per_byte", "val_batches",
    "val_ppl",
)  # fmt: skip


class TokenLoss(Metric):
    """Negative log-likelihood summed over tokens, over any number of batches and ranks.

    ``compute`` returns plain numbers:

    - ``loss``: mean over target tokens, in nats: never a mean of batch means, never over padding;
    - ``perplexity``: ``exp(loss)``;
    - ``bits_per_byte``: the same likelihood per UTF-8 byte of text, comparable across tokenizers;
    - ``perplexity_galore_protocol``: what the evaluation loops of the GaLore family print for the same
      predictions: an unweighted mean of batch means whose counter starts at 1, so the N batches of a rank are
      divided by N + 1, and of this the mean over ranks. It flatters small N and is reported only under this name;
    - ``batches``: that N of a rank (their mean), on which the flattery depends.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor
    text_bytes: Tensor
    batch_means: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float64: a float32 sum of ten million token losses loses the third decimal of a perplexity
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("text_bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # of each rank by itself, since every one divides by its own counter
        self.add_state("batch_means", torch.zeros((), dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "TokenLoss":
        """Follow the model to its device, but not to its dtype: in bfloat16 a sum soon stops growing."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)
        return self

    def update(self, nll: Tensor, tokens: Tensor, text_bytes: Tensor) -> None:
        """Add one batch.

        Args:
            nll: Summed negative log-likelihood of the batch's targets, in nats, scalar.
            tokens: Number of targets, scalar.
            text_bytes: UTF-8 bytes the targets stand for, scalar.
        """
        nll = nll.double()
        self.nll += nll
        self.tokens += tokens
        self.text_bytes += text_bytes
        self.batch_means += torch.where(tokens > 0, nll / tokens.clamp(min=1), 0.0)
        self.batches += (tokens > 0).long()

    def compute(self) -> dict[str, float]:
        """The figures above; NaN where there were no tokens."""
        nll, tokens, text_bytes = self.nll.item(), int(self.tokens), int(self.text_bytes)
        loss = nll / tokens if tokens else math.nan
        batches = self.batches.double().mean().item()
        galore = _exp((self.batch_means / (self.batches + 1)).mean().item()) if batches else math.nan
        return {
            "loss": loss,
            "perplexity": _exp(loss),
            "bits_per_byte": nll / math.log(2) / text_bytes if text_bytes else math.nan,
            "perplexity_galore_protocol": galore,
            "batches": batches or math.nan,
        }


def _exp(loss: float) -> float:
    """``exp`` that says inf where a diverged loss overflows, instead of raising."""
    if math.isnan(loss):
        return math.nan
    return math.exp(loss) if loss < 700 else math.inf
