"""The account of an optimizer's memory against what the optimizer holds."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.experts_config import ExpertsConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer, optimizer_state_entries

PARTS = {
    "embed_tokens": "embedding",
    "self_attn": "attention",
    "mlp": "ffn",
    "layernorm": "norms",
    "norm": "norms",
    "lm_head": "head",
}


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("ffn", ["swiglu", "relu2"])
@pytest.mark.parametrize(
    ("config", "ranks"),
    [
        ({"name": "adamw"}, (4, None)),
        ({"name": "loro"}, (4, 6)),
        ({"name": "loro"}, (None, 6)),
        ({"name": "muon"}, (4, None)),
        ({"name": "galore", "galore_rank": 3}, (None, None)),
        ({"name": "galore", "galore_rank": 3}, (4, None)),
    ],
)
def test_entries_are_those_of_the_optimizer(
    make_model: Callable[..., Llama],
    give_gradients: Callable[..., None],
    config: dict[str, Any],
    ranks: tuple[int | None, int | None],
    ffn: str,
    experts: int,
) -> None:
    model = make_model(
        attention_rank=ranks[0], ffn_rank=ranks[1], ffn=ffn, num_layers=2, experts=ExpertsConfig(experts)
    )
    optimizer_config = OptimizerConfig(**config, warmup_steps=0)
    optimizer, _ = build_optimizer(model, optimizer_config, total_steps=10)
    give_gradients(model.parameters(), 0)
    optimizer.step()
    held: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = next(part for key, part in PARTS.items() if key in name)
        held[part] += sum(value.numel() for value in optimizer.state[parameter].values() if value.ndim)
    account = optimizer_state_entries(optimizer_config, model.config)
    assert account == {**held, "total": held.total()}


def test_galores_paper_counts_the_same() -> None:
    """Table 1 of arXiv 2403.03507 for a matrix of m by n, m the smaller: 2 n r + m r."""
    model = ModelConfig(vocab_size=2, hidden_size=512, intermediate_size=1376, num_layers=1, num_heads=8)
    entries = optimizer_state_entries(OptimizerConfig(name="galore", galore_rank=128), model)
    assert entries["attention"] == 4 * (3 * 512 * 128)
    assert entries["ffn"] == 3 * (2 * 1376 * 128 + 512 * 128)
