"""The feed-forward variants behind one interface: ``forward``, and ``hidden`` for telemetry.

Shape suffixes: C model width, R rank, F hidden features; "..." batch and time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.linear import LowRankLinear, make_linear
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.ops import activate, lowrank_ffn, resolve_backend
from elas_lightning.ops.feature_wise import feature_wise_ffn
from elas_lightning.ops.storage import CHUNK_TOKENS


class FFN(nn.Module):
    """What the variants share: the sites, and the making of their matrices."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """Prepare the sites of one layer.

        Args:
            config: The model.
            layer: Index of the layer, which decides whether its sites are placed.
        """
        super().__init__()
        self.config = config
        self.layer = layer
        self.input_site = self._site("ffn_input")
        self.hidden_site = self._site("ffn_hidden")

    def _site(self, site: str) -> SparsitySite:
        return SparsitySite(site, self.config.sparsity, self.layer in self.config.sparse_layers)  # type: ignore[arg-type]

    def _linear(self, d_in: int, d_out: int) -> nn.Linear | LowRankLinear:
        silu = self.config.bottleneck_activation is not None
        return make_linear(d_in, d_out, self.config.ffn_rank, silu=silu, site=self._site("ffn_bottleneck"))

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden features before their 2:4 step, ``(..., C)`` to ``(..., F)``."""
        raise NotImplementedError

    @property
    def _backward_is_feature_wise(self) -> bool:
        return self.hidden_site.active and self.config.sparsity.backward == "feature_wise"

    def _feature_wise(
        self,
        x: Tensor,
        projections: Sequence[nn.Linear | LowRankLinear],
        combine: Callable[..., Tensor],
        down: nn.Linear | LowRankLinear,
    ) -> Tensor:
        """The whole FFN, with ``feature_wise_ffn`` next to its hidden features."""
        x = self.input_site(x)
        out = feature_wise_ffn(
            [_before_hidden(projection, x) for projection in projections],
            combine,
            self.hidden_site,
            down.A if isinstance(down, LowRankLinear) else down.weight,
            dense_share=self.config.sparsity.backward_dense_share,
            permute=self.config.sparsity.backward_permutation,
        )
        return down.expand(down.between(out)) if isinstance(down, LowRankLinear) else out


def _before_hidden(linear: nn.Linear | LowRankLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The last product before the hidden features: ``z (..., R)`` and ``(F, R)``; at full rank R is C."""
    return (linear.reduce(x), linear.B) if isinstance(linear, LowRankLinear) else (x, linear.weight)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class SwiGLU(FFN):
    """``down(silu(gate x) * up x)`` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate_proj = self._linear(config.hidden_size, config.ffn_width)
        self.up_proj = self._linear(config.hidden_size, config.ffn_width)
        self.down_proj = self._linear(config.ffn_width, config.hidden_size)

    def hidden(self, x: Tensor) -> Tensor:
        x = self.input_site(x)
        return _gated(self.gate_proj(x), self.up_proj(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        if self._backward_is_feature_wise:
            return self._feature_wise(x, (self.gate_proj, self.up_proj), _gated, self.down_proj)
        return self.down_proj(self.hidden_site(self.hidden(x)))


class UngatedFFN(FFN):
    """``down(act(up x))`` with squared ReLU (ELAS), ReLU, GELU or SiLU.

    All that stands between the factors next to the hidden features is one op, ``lowrank_ffn``; at full rank
    the matrices themselves take the factors' places.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.up_proj = self._linear(config.hidden_size, config.ffn_width)
        self.down_proj = self._linear(config.ffn_width, config.hidden_size)

    def hidden(self, x: Tensor) -> Tensor:
        return activate(self.up_proj(self.input_site(x)), self.config.ffn)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        up, down = self.up_proj, self.down_proj
        if self._backward_is_feature_wise:
            activation = partial(activate, activation=self.config.ffn)  # type: ignore[arg-type]
            return self._feature_wise(x, (up,), activation, down)
        if self.hidden_site.active and self.config.sparsity.only_plain_pytorch is not None:
            return down(self.hidden_site(self.hidden(x)))
        x = self.input_site(x)
        # z and out: (..., R) at low rank, (..., C) at full rank
        z, up_weight = _before_hidden(up, x)
        sparse, storage = self.hidden_site.active, self.config.ffn_storage
        if storage == "packed" and not sparse:
            storage = "recompute"  # as ffn_storage documents: dense features have no packed form
        out = lowrank_ffn(
            z,
            up_weight,
            (down.A if isinstance(down, LowRankLinear) else down.weight).t(),
            activation=self.config.ffn,  # type: ignore[arg-type]
            sparsity="2:4" if sparse else None,
            gradient=self.hidden_site.gradient,
            backend=self.config.backend,
            storage=storage,
        )
        return down.expand(down.between(out)) if isinstance(down, LowRankLinear) else out


def ffn_path(config: ModelConfig, device: torch.device) -> str:
    """In words what computes the feed-forward networks of a model, for logs and result files.

    Args:
        config: The model.
        device: Where it runs.

    Raises:
        UserError: The configured backend cannot run there.
    """
    sparsity = config.sparsity
    if "ffn_hidden" in sparsity.placement and sparsity.only_plain_pytorch is not None:
        backward = "feature-wise backward by masks and dense products, " * (sparsity.backward != "dense")
        resolve_backend(config.backend, device)
        return f"plain PyTorch, {sparsity.pattern} by {sparsity.method}, {backward}everything kept"
    if config.gated:
        return "plain PyTorch, SwiGLU"
    paths = {
        ("reference", "dense"): "plain PyTorch, pre-activation and hidden features kept",
        (
            "reference",
            "packed",
        ): f"plain PyTorch in chunks of {CHUNK_TOKENS} tokens, packed hidden features kept",
        (
            "reference",
            "recompute",
        ): f"plain PyTorch in chunks of {CHUNK_TOKENS} tokens, nothing d_ff wide kept",
        ("triton", "dense"): "library products around a kernel that squares and selects",
        ("triton", "packed"): "hidden_kernel writes packed features, which are kept; library products",
        (
            "triton",
            "recompute",
        ): "fused_kernel at the ranks it covers, else hidden_kernel and a library product; "
        "hidden_backward_kernel and library products in backward; nothing d_ff wide kept",
    }
    return paths[resolve_backend(config.backend, device).chosen, config.ffn_storage]


def make_ffn(config: ModelConfig, layer: int) -> FFN:
    """The feed-forward network of one layer.

    Args:
        config: The model.
        layer: Index of the layer.

    Returns:
        A module that maps ``(..., C)`` to ``(..., C)``.
    """
    return SwiGLU(config, layer) if config.gated else UngatedFFN(config, layer)
