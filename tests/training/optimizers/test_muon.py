"""Muon in one optimizer with AdamW against the two of torch's, and the size of its updates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer

MakeModel = Callable[..., Llama]
CONFIG = OptimizerConfig(
    name="muon",
    lr=0.1,
    block_lr_ratio=0.25,
    warmup_steps=0,
    min_lr_ratio=1.0,
    weight_decay=0.1,
    muon_momentum=0.8,
    muon_ns_steps=4,
)


def test_it_is_torchs_muon_on_the_blocks_and_adamw_on_the_rest(
    make_model: MakeModel, give_gradients: Callable[..., None]
) -> None:
    mine, theirs = make_model(), make_model()
    optimizer, _ = build_optimizer(mine, CONFIG, total_steps=100)
    blocks = [p for p in theirs.layers.parameters() if p.ndim == 2]
    head = [theirs.lm_head.weight]
    rest = [p for p in theirs.parameters() if not any(p is q for q in (*blocks, *head))]
    own: dict[str, Any] = {"momentum": 0.8, "ns_steps": 4, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon(blocks, lr=0.025, weight_decay=0.1, **own)
    adamw = torch.optim.AdamW([{"params": head, "weight_decay": 0.1}, {"params": rest}], lr=0.1, weight_decay=0.0)
    for seed in range(3):
        give_gradients(mine.parameters(), seed)
        give_gradients(theirs.parameters(), seed)
        optimizer.step()
        muon.step()
        adamw.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("changes", [{}, {"attention_rank": 2, "ffn_rank": 12}, {"ffn_rank": None}])
def test_updates_are_as_large_as_adams_usually_are_whatever_the_shape(
    make_model: MakeModel, give_gradients: Callable[..., None], changes: dict[str, Any]
) -> None:
    model = make_model(**changes)
    config = OptimizerConfig(name="muon", lr=1.0, warmup_steps=0, min_lr_ratio=1.0)
    optimizer, _ = build_optimizer(model, config, total_steps=100)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    give_gradients(model.parameters(), 0)
    optimizer.step()
    for name, parameter in model.layers.named_parameters():
        if parameter.ndim == 2:
            update = parameter.detach() - before[f"layers.{name}"]
            # torch's iteration leaves singular values between about 0.7 and 1.2
            assert 0.1 < float(update.square().mean().sqrt()) < 0.25, name
