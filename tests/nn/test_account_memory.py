"""The bytes of an account against those of real tensors: saved for backward, allocated, and after a real step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from elas_lightning.errors import UserError
from elas_lightning.nn import Llama, ModelConfig, SparsityConfig
from elas_lightning.nn.account import TrainingStep, activations, kv_cache_bytes, memory_account
from elas_lightning.nn.loss import linear_next_token_loss

TOLERANCE = 0.02
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
SITES = ("ffn_hidden", "ffn_input", "ffn_bottleneck", "attention_input", "attention_output")


def _bytes(tensors: list[Tensor]) -> dict[int, int]:
    """Size of each storage, a storage that several tensors share once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@contextmanager
def saved_for_backward() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)  # held, so that its address is nobody else's
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def build(config: ModelConfig, precision: str) -> Llama:
    model = Llama(config)
    return model.to(torch.bfloat16) if precision == "bf16-true" else model


def loss_of(model: Llama, input_ids: Tensor, precision: str) -> Tensor:
    mixed = torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    with mixed:
        nll, tokens = linear_next_token_loss(model.hidden(input_ids), model.lm_head.weight, input_ids)
    return nll / tokens


def measured(config: ModelConfig, batch: int, sequence: int, precision: str, sparse: bool = True) -> int:
    """Bytes that a real forward pass keeps, without parameters and inputs."""
    model = build(config, precision)
    model.set_sparsity(sparse)
    input_ids = torch.randint(config.vocab_size, (batch, sequence))
    with saved_for_backward() as saved:
        loss_of(model, input_ids, precision)
    given = _bytes([input_ids, *model.parameters()])
    return sum(size for at, size in _bytes(saved).items() if at not in given)


def accounted(config: ModelConfig, step: TrainingStep) -> int:
    account = memory_account(config, step)
    return account["activations"] + account["weight_casts"]


def random_case(seed: int) -> tuple[ModelConfig, int, int, bool]:
    """Any model that can be built: odd sizes, each FFN, storage, placement and gradient."""
    draw = random.Random(seed)
    heads, layers = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3])
    width = heads * draw.choice([4, 8, 12, 20])
    ffn = draw.choice(["swiglu", "relu2", "relu2", "relu2", "relu", "gelu", "silu"])
    ranks = [r for r in (4, 8, 12) if r <= width]
    ffn_rank = draw.choice([None, *ranks])
    placement = [s for s in SITES if draw.random() < 0.5 and not (s == "ffn_bottleneck" and ffn_rank is None)]
    storages = ["dense"]
    if ffn == "relu2":
        storages += ["recompute", *(["packed"] if "ffn_hidden" in placement else [])]
    attention_rank = draw.choice([None, *ranks])
    low_rank = attention_rank is not None or ffn_rank is not None
    config = ModelConfig(
        vocab_size=draw.randint(50, 150),
        hidden_size=width,
        intermediate_size=16 * draw.randint(2, 5),
        num_layers=layers,
        num_heads=heads,
        attention_rank=attention_rank,
        ffn_rank=ffn_rank,
        ffn=ffn,
        bottleneck_activation=draw.choice([None, "silu"]) if low_rank else None,
        ffn_storage=draw.choice(storages),
        sparsity=SparsityConfig(
            tuple(placement),
            layers=draw.choice(["all", "second_half"]),
            gradient=draw.choice(["ste", "masked"]),
        ),
    )
    return config, draw.randint(1, 4), draw.choice([3, 17, 40, 130]), draw.random() < 0.8


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("seed", range(25))
def test_activations_are_those_that_autograd_keeps_at_random_shapes(seed: int, precision: Any) -> None:
    config, batch, sequence, sparse = random_case(seed)
    step = TrainingStep(batch, sequence, precision, device="cpu", sparse=sparse)
    kept = measured(config, batch, sequence, precision, sparse)
    assert accounted(config, step) == pytest.approx(kept, rel=TOLERANCE)
