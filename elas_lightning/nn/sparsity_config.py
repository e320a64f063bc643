"""Where and how activations become sparse: a frozen dataclass, part of ``nn/config.py``'s ``ModelConfig``.

``from __future__ import annotations`` is absent on purpose: the command line reads the annotations at run time.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from elas_lightning.nn.checks import check_choice, check_int, is_int, is_number, refuse
from elas_lightning.ops.patterns import STOCHASTIC, Method, Pattern, width_multiple
from elas_lightning.ops.sparsify import Gradient

Placement = Literal["ffn_hidden", "ffn_input", "ffn_bottleneck", "attention_input", "attention_output"]
LayerRange = Literal["all", "first_half", "second_half"]
Backward = Literal["dense", "feature_wise"]


@dataclass(frozen=True)
class SparsityConfig:
    """Where and how activations become sparse; 2:4 by magnitude is ELAS (arXiv 2605.03667), the rest its controls.

    Attributes:
        placement: Sites made sparse; empty means a dense model. ``ffn_hidden``: the hidden features, after the
            activation (ELAS). ``ffn_input``: what up (and gate) reads. ``ffn_bottleneck``: between the two
            factors of each FFN matrix. ``attention_input``: what q, k, v read. ``attention_output``: what o
            reads.
        layers: Decoder layers that carry the sites: ``all``, ``first_half`` (the first ``num_layers // 2``),
            ``second_half`` (the rest), or a list of indices from 0.
        pattern: ``2:4``, two kept of every four consecutive features; also ``1:4``, ``3:4``, ``2:8``, or
            ``unstructured``, half of a token's features.
        method: Which are kept: ``magnitude`` (the largest), ``soft_threshold`` (these, shrunk by the largest that is
            not kept), ``mvue`` (at random and unbiased), ``random``, ``first``; see ``elas_lightning.ops.sparsify``.
            All but 2:4 by magnitude run in plain PyTorch.
        gradient: ``ste``: the step is the identity in backward (ELAS); ``masked``: backward with the choice held
            fixed, so that only kept entries carry gradient (and the one that is a soft threshold).
        backward: ``dense``: weight gradients multiply what forward left; ``feature_wise``: the hidden features and
            their gradient are made 2:4 along the tokens for them (Haziza et al., arXiv 2503.16672, whose recipe has
            ``gradient: masked``). Arithmetic only: masks and dense products, nothing is saved. Starts with the 2:4
            step, after the dense warm-up.
        backward_dense_share: Share of the features, the least sparse ones, that ``feature_wise`` leaves as they are.
        backward_permutation: Whether ``feature_wise`` groups tokens after a fixed permutation.
        dense_warmup_steps: Optimizer steps at the start during which the sparsity step is off.
    """

    placement: tuple[Placement, ...] = ()
    layers: LayerRange | tuple[int, ...] = "all"
    pattern: Pattern = "2:4"
    method: Method = "magnitude"
    gradient: Gradient = "ste"
    backward: Backward = "dense"
    backward_dense_share: float = 0.05
    backward_permutation: bool = True
    dense_warmup_steps: int = 1000

    def __post_init__(self) -> None:
        # YAML has lists only; tuples keep the frozen config hashable.
        for key in ("placement", "layers"):
            if isinstance(getattr(self, key), list):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        self._check_placement()
        self._check_layers()
        check_choice("sparsity.pattern", self.pattern, Pattern)
        check_choice("sparsity.method", self.method, Method)
        check_choice("sparsity.gradient", self.gradient, Gradient)
        check_int("sparsity.dense_warmup_steps", self.dense_warmup_steps, 0)
        self._check_backward()

    @property
    def stochastic(self) -> bool:
        """Whether the method draws random numbers."""
        return self.method in STOCHASTIC

    @property
    def only_plain_pytorch(self) -> str | None:
        """What, if anything, the kernels and the packed storage do not know; they know 2:4 by magnitude alone."""
        if self.pattern != "2:4":
            return f"sparsity.pattern {self.pattern}"
        if self.method != "magnitude":
            return f"sparsity.method {self.method}"
        return None if self.backward == "dense" else f"sparsity.backward {self.backward}"

    def kernel_backend(self, backend: str) -> Literal["triton", "reference"]:
        """What a site of its own runs on under a model's ``backend``: the kernel where a GPU's backend is named.

        ``auto`` knows measurements of whole FFNs alone, and leaves sites to plain PyTorch.
        """
        kernel = (self.pattern, self.method) == ("2:4", "magnitude") and backend not in ("auto", "reference")
        return "triton" if kernel else "reference"

    @property
    def width_multiple(self) -> int:
        """What the width of a sparse site must be divisible by."""
        return width_multiple(self.pattern)

    def _check_backward(self) -> None:
        check_choice("sparsity.backward", self.backward, Backward)
        share = self.backward_dense_share
        if not is_number(share) or not 0 <= share <= 1:
            raise refuse("sparsity.backward_dense_share", share, "give a share of the features, 0 to 1")
        if not isinstance(self.backward_permutation, bool):
            raise refuse("sparsity.backward_permutation", self.backward_permutation, "give true or false")
        if self.backward == "feature_wise" and self.placement and "ffn_hidden" not in self.placement:
            allowed = "it is of the FFN's hidden features: put ffn_hidden in sparsity.placement, or choose dense"
            raise refuse("sparsity.backward", self.backward, allowed)

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
