"""Random models with a tokenizer, as if they had been trained."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.inference.load import TrainedModel
from elas_lightning.nn import Llama, ModelConfig

SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4}
LOW_RANK: dict[str, Any] = {"attention_rank": 8, "ffn_rank": 12}


def random_model(seed: int = 0, **changes: Any) -> Llama:
    """Weights large enough that logits are far apart and every part of the model shows in them."""
    torch.manual_seed(seed)
    model = Llama(ModelConfig(**{**SIZES, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif not name.endswith((".A", ".B")):
                parameter.mul_(6.0)
    return model.eval()


def as_trained(model: Llama, tokenizer_file: Path, step: int = 5000) -> TrainedModel:
    tokenizer = TextTokenizer(Tokenizer.from_file(str(tokenizer_file)), "small")
    return TrainedModel(model, tokenizer, step, {"sequence_length": 256}, None, tokenizer_file.parent / "none")
