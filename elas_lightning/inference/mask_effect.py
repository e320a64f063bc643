"""What the 2:4 step is worth at inference: perplexity with it and without it, the same weights, the same tokens."""

import copy
import math
from dataclasses import dataclass

import torch

from elas_lightning.data.loaders import ValidationBatches
from elas_lightning.data.module import C4DataModule
from elas_lightning.errors import UserError
from elas_lightning.inference.load import TrainedModel
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.loss import linear_next_token_loss


@dataclass(frozen=True)
class MaskEffect:
    """Perplexity of one model with and without its 2:4 step.

    Args:
        tokens: Targets measured on.
        kept: Perplexity with the step, as trained.
        dropped: Perplexity without it.
    """

    tokens: int
    kept: float
    dropped: float

    @property
    def per_cent(self) -> float:
        """By how much dropping the step raises perplexity; negative where it lowers it."""
        return 100 * (self.dropped / self.kept - 1)


def measure_mask_effect(trained: TrainedModel, tokens: int) -> MaskEffect:
    """Measure on the first validation tokens of the run's data, in float32, where the step is not lost in rounding.

    Args:
        trained: A model whose 2:4 step is on.
        tokens: Targets at most; the validation split may have fewer.

    Raises:
        UserError: The data cannot be reached, or is not what the run was validated on.
    """
    if "source" not in trained.data:
        raise UserError("an imported model has no validation data of its own")
    data = C4DataModule(**{**trained.data, "validation_tokens": tokens})
    known = trained.result.data["fingerprint"] if trained.result else data.fingerprint
    if data.fingerprint != known:
        raise UserError(f"the data found here is {data.fingerprint} and the run's was {known}")
    batches = data.val_dataloader()
    model = trained.model
    if model.embed_tokens.weight.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    try:
        kept, counted = _perplexity(model, batches)
        model.set_sparsity(False)
        dropped, _ = _perplexity(model, batches)
    finally:
        model.set_sparsity(True)
    return MaskEffect(counted, kept, dropped)


@torch.inference_mode()
def _perplexity(model: Llama, batches: ValidationBatches) -> tuple[float, int]:
    device = model.embed_tokens.weight.device
    nll, tokens = 0.0, 0
    for batch in batches:
        ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
        summed, real = linear_next_token_loss(model.hidden(ids), model.lm_head.weight, labels)
        nll, tokens = nll + float(summed), tokens + int(real)
    return math.exp(nll / tokens), tokens
