"""The feed-forward variants behind one interface: ``forward``, and ``hidden`` for telemetry.

Shape suffixes: C model width, R rank, F hidden features; "..." batch and time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.linear import LowRankLinear, make_linear
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.ops import activate, lowrank_ffn, resolve_backend
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
        return make_linear(
            d_in, d_out, self.config.layer_rank("ffn"), silu=silu, site=self._site("ffn_bottleneck")
        )

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden features before their 2:4 step, ``(..., C)`` to ``(..., F)``."""
        raise NotImplementedError


class SwiGLU(FFN):
    """``down(silu(gate x) * up x)`` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate_proj = self._linear(config.hidden_size, config.ffn_width)
        self.up_proj = self._linear(config.hidden_size, config.ffn_width)
        self.down_proj = self._linear(config.ffn_width, config.hidden_size)

    def hidden(self, x: Tensor) -> Tensor:
        x = self.input_site(x)
        return F.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
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
        x = self.input_site(x)
        # z and out: (..., R) at low rank, (..., C) at full rank
        z, up_weight = (up.reduce(x), up.B) if isinstance(up, LowRankLinear) else (x, up.weight)
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
