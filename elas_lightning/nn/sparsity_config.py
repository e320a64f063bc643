"""Where and how activations become sparse: a frozen dataclass, part of ``nn/config.py``'s ``ModelConfig``.

``from __future__ import annotations`` is absent on purpose: the command line reads the annotations at run time.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from elas_lightning.nn.checks import check_choice, check_int, is_int, refuse

Placement = Literal["ffn_hidden", "ffn_input", "ffn_bottleneck", "attention_input", "attention_output"]
LayerRange = Literal["all", "first_half", "second_half"]
Gradient = Literal["ste", "masked"]


@dataclass(frozen=True)
class SparsityConfig:
    """Where and how activations become 2:4 sparse (ELAS, arXiv 2605.03667).

    Attributes:
        placement: Sites made 2:4; empty means a dense model. ``ffn_hidden``: the hidden features, after the
            activation (ELAS). ``ffn_input``: what up (and gate) reads. ``ffn_bottleneck``: between the two
            factors of each FFN matrix. ``attention_input``: what q, k, v read. ``attention_output``: what o
            reads.
        layers: Decoder layers that carry the sites: ``all``, ``first_half`` (the first ``num_layers // 2``),
            ``second_half`` (the rest), or a list of indices from 0.
        pattern: ``2:4``, two kept of every four consecutive features.
        method: ``magnitude``: the two of largest magnitude are kept.
        gradient: ``ste``: the 2:4 step is the identity in backward (ELAS); ``masked``: only kept entries
            carry gradient.
        dense_warmup_steps: Optimizer steps at the start during which the 2:4 step is off.
    """

    placement: tuple[Placement, ...] = ()
    layers: LayerRange | tuple[int, ...] = "all"
    pattern: Literal["2:4"] = "2:4"
    method: Literal["magnitude"] = "magnitude"
    gradient: Gradient = "ste"
    dense_warmup_steps: int = 1000

    def __post_init__(self) -> None:
        # YAML has lists only; tuples keep the frozen config hashable.
        for key in ("placement", "layers"):
            if isinstance(getattr(self, key), list):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        self._check_placement()
        self._check_layers()
        check_choice("sparsity.pattern", self.pattern, Literal["2:4"])
        check_choice("sparsity.method", self.method, Literal["magnitude"])
        check_choice("sparsity.gradient", self.gradient, Gradient)
        check_int("sparsity.dense_warmup_steps", self.dense_warmup_steps, 0)

    def _check_placement(self) -> None:
        if not isinstance(self.placement, tuple):
            allowed = f"give a list of {', '.join(get_args(Placement))}, or []"
            raise refuse("sparsity.placement", self.placement, allowed)
        for site in self.placement:
            check_choice("sparsity.placement", site, Placement)
        if len(set(self.placement)) < len(self.placement):
            raise refuse("sparsity.placement", list(self.placement), "name each placement once")

    def _check_layers(self) -> None:
        allowed = f"choose one of {', '.join(get_args(LayerRange))}, or a list of layer indices"
        if isinstance(self.layers, str):
            if self.layers not in get_args(LayerRange):
                raise refuse("sparsity.layers", self.layers, allowed)
        elif not isinstance(self.layers, tuple) or not all(is_int(i) for i in self.layers):
            raise refuse("sparsity.layers", self.layers, allowed)
        elif len(set(self.layers)) < len(self.layers):
            raise refuse("sparsity.layers", list(self.layers), "name each layer once")
