"""From a configuration to rules on the layers of a model, and from a model to its rules.

A rule is a parametrization (``torch.nn.utils.parametrize``): ``layer.weight``, or a factor ``layer.A``, stays what
it was to all who read it, and gives what the rule makes. The parameter behind it is
``layer.parametrizations.weight.original``.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.weights.low_rank import Restarted, SparsePlusLowRank
from elas_lightning.nn.weights.masked import DecayingMask, PruneOnce
from elas_lightning.nn.weights.rule import WeightRule
from elas_lightning.nn.weights.soft_threshold import SoftThreshold


def attach_rules(blocks: nn.ModuleList, config: ModelConfig) -> None:
    """Give every linear layer that the method reaches its rule.

    Args:
        blocks: Those of a decoder, whose weights have been initialised before.
        config: ``weights``, and the ranks of factors.
    """
    for name, layer in list(blocks.named_modules()):
        part = "ffn" if ".mlp." in name else "attention"
        if not isinstance(layer, nn.Linear | LowRankLinear) or not config.weights.reaches(part):
            continue
        rank = config.ffn_rank if part == "ffn" else config.attention_rank
        for tensor in ("A", "B") if isinstance(layer, LowRankLinear) else ("weight",):
            rule = _make_rule(getattr(layer, tensor), rank, config)
            if rule is not None:
                parametrize.register_parametrization(layer, tensor, rule)


def _make_rule(weight: Tensor, rank: int | None, config: ModelConfig) -> WeightRule | None:
    weights = config.weights
    match weights.method:
        case "plain" | "oats":
            return None
        case "sltrain":
            assert rank is not None  # refused by ModelConfig
            return SparsePlusLowRank(weight, rank, weights)
        case "relora":
            assert rank is not None  # refused by ModelConfig
            return Restarted(weight, rank, weights)
        case "s_ste":
            return SoftThreshold(weight)
        case "asp":
            return PruneOnce(weight, weights)
        case "sr_ste" | "transposable":
            return DecayingMask(weight, weights)


def weight_rules(model: nn.Module) -> Iterator[tuple[WeightRule, nn.Parameter]]:
    """Every rule of a model, with the parameter that stands for its weight."""
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], WeightRule):
            yield module[0], module.original  # type: ignore[misc]
