"""What an OptimizerConfig refuses, and that it survives a checkpoint."""

from dataclasses import asdict
from typing import Any

import pytest

from elas_lightning.errors import UserError
from elas_lightning.training.optimizers import OptimizerConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "sgd"),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("block_lr_ratio", 0.0),
        ("schedule", "linear"),
        ("restart_every", 0),
        ("restart_warmup_steps", -1),
        ("warmup_steps", -1),
        ("min_lr_ratio", 1.5),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("loro_direction", "sgd"),
        ("loro_reset", "none"),
        ("loro_exact_lr_ratio", 0.0),
        ("muon_momentum", 1.0),
        ("muon_ns_steps", 0),
        ("galore_update_every", 0),
        ("galore_scale", float("inf")),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError) as refusal:
        OptimizerConfig(**{field: value})
    assert str(refusal.value).startswith(f"model.optimizer.{field} is {value}: it must ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("rank", [None, 0])
def test_galore_needs_a_rank(rank: int | None) -> None:
    with pytest.raises(UserError, match=rf"model\.optimizer\.galore_rank is {rank}"):
        OptimizerConfig(name="galore", galore_rank=rank)


def test_a_restart_warmup_longer_than_its_cycle_is_refused() -> None:
    with pytest.raises(UserError, match=r"restart_warmup_steps is 9: .*restart_every, which is 8"):
        OptimizerConfig(schedule="cosine_restarts", restart_every=8, restart_warmup_steps=9)


def test_a_config_can_be_rebuilt_from_its_fields() -> None:
    config = OptimizerConfig(name="galore", galore_rank=4, betas=(0.9, 0.95))
    assert OptimizerConfig(**asdict(config)) == config
    assert OptimizerConfig(**{**asdict(config), "betas": [0.9, 0.95]}) == config
