"""The feed-forward variants behind one interface: ``forward``, and ``hidden`` for telemetry.

Shape suffixes: C model width, R rank, F hidden features; "..." batch and time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elas_lightning.nn.checks import refuse
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.linear import LowRankLinear, make_linear
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.ops import BackendChoice, activate, lowrank_ffn, lowrank_ffn_decode, resolve_backend
from elas_lightning.ops.decode import DECODE_TOKENS, decode_pays
from elas_lightning.ops.feature_wise import feature_wise_ffn
from elas_lightning.ops.measured import Case, Direction
from elas_lightning.ops.storage import CHUNK_TOKENS

# Their packed form is no storage for backward.
_PACKS_FOR_ITSELF = ("hopper", "cusparselt_compress")


class FFN(nn.Module):
    """What the variants share: the sites, placed if the layer's index says so, and the making of their matrices."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.input_site = self._site("ffn_input")
        self.hidden_site = self._site("ffn_hidden")

    def _site(self, site: str) -> SparsitySite:
        return SparsitySite(site, self.config, self.layer)  # type: ignore[arg-type]

    def _linear(self, d_in: int, d_out: int) -> nn.Linear | LowRankLinear:
        silu = self.config.bottleneck_activation is not None
        return make_linear(d_in, d_out, self.config.layer_rank("ffn"), silu=silu, site=self._site("ffn_bottleneck"))

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
            _reading_hidden(down),
            dense_share=self.config.sparsity.backward_dense_share,
            permute=self.config.sparsity.backward_permutation,
        )
        return _after_hidden(down, out)


def _before_hidden(linear: nn.Linear | LowRankLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The last product before the hidden features: ``z (..., R)`` and ``(F, R)``; at full rank R is C."""
    return (linear.reduce(x), linear.B) if isinstance(linear, LowRankLinear) else (x, linear.weight)


def _reading_hidden(down: nn.Linear | LowRankLinear) -> Tensor:
    """The matrix of the first product behind the hidden features, ``(R, F)``; at full rank R is C."""
    return down.A if isinstance(down, LowRankLinear) else down.weight


def _after_hidden(down: nn.Linear | LowRankLinear, out: Tensor) -> Tensor:
    """What follows that product: ``(..., R)`` to ``(..., C)``."""
    return down.expand(down.between(out)) if isinstance(down, LowRankLinear) else out


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
        if config.ffn_storage == "packed" and config.backend in _PACKS_FOR_ITSELF:
            # now, and not when the dense warm-up is over, which keeps nothing
            allowed = f"backend {config.backend} cannot keep its packed form for backward: choose recompute"
            raise refuse("ffn_storage", config.ffn_storage, allowed)
        self.up_proj = self._linear(config.hidden_size, config.ffn_width)
        self.down_proj = self._linear(config.ffn_width, config.hidden_size)
        self._rows: tuple[tuple[object, ...], Tensor] | None = None

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
        weight = _reading_hidden(down)
        if self._decodes(z, weight):
            return _after_hidden(down, self._decode(z, up_weight, weight))
        sparse, storage = self.hidden_site.active, self.config.ffn_storage
        if storage == "packed" and not sparse:
            storage = "recompute"  # as ffn_storage documents: dense features have no packed form
        out = lowrank_ffn(
            z,
            up_weight,
            weight.t(),
            activation=self.config.ffn,  # type: ignore[arg-type]
            sparsity="2:4" if sparse else None,
            gradient=self.hidden_site.gradient,
            backend=self.config.backend,
            storage=storage,
        )
        return _after_hidden(down, out)

    def train(self, mode: bool = True) -> UngatedFFN:
        """Switch between training and inference; training lets go of the copy that decoding keeps."""
        self._rows = None
        return super().train(mode)

    def _decodes(self, z: Tensor, weight: Tensor) -> bool:
        """Whether these are a few tokens of inference: an eager call in evaluation mode, without gradients."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        few = z.numel() <= DECODE_TOKENS * z.shape[-1]
        return few and self.config.ffn == "relu2" and decode_pays(weight, self.config.backend)

    def _decode(self, z: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        """The FFN between its factors, with the rows of the second product skipped that no token needs."""
        return lowrank_ffn_decode(
            z,
            up,
            weight.t(),
            sparsity="2:4" if self.hidden_site.active else None,
            backend=self.config.backend,
            down_rows=self._row_copy(weight),
        )

    def _row_copy(self, weight: Tensor) -> Tensor | None:
        """``weight`` in the order in which its columns can be skipped; made again when the weight has changed."""
        if weight.is_inference() or not isinstance(weight, nn.Parameter):
            return None  # such a tensor does not tell whether it has changed; a rule's is made anew at each call
        # a load or a step moves the version, a change of device or dtype the rest
        key = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
        if self._rows is None or self._rows[0] != key:
            self._rows = key, weight.detach().t().contiguous()
        return self._rows[1]


def ffn_choice(
    config: ModelConfig,
    device: torch.device,
    tokens: int,
    dtype: str,
    direction: Direction = "training",
    compiled: bool = False,
) -> BackendChoice:
    """What computes the feed-forward networks of a model, and why; ``auto`` looks at what was measured.

    Args:
        config: The model.
        device: Where it runs.
        tokens: Of one call, a micro-batch in training; experts share them, as if each had as many.
        dtype: The arithmetic's, as ``bfloat16``.
        direction: ``training``, or ``forward`` without gradients.
        compiled: Whether ``torch.compile`` runs the model.

    Raises:
        UserError: The configured backend cannot run there.
    """
    knows = config.sparsity.only_plain_pytorch is None or "ffn_hidden" not in config.sparsity.placement
    if config.ffn != "relu2" or not knows:
        return resolve_backend(config.backend, device)
    sparse = "ffn_hidden" in config.sparsity.placement
    storage = "recompute" if config.ffn_storage == "packed" and not sparse else config.ffn_storage
    rank = config.layer_rank("ffn") or config.hidden_size
    tokens = max(1, tokens * config.experts.per_token // config.experts.count)
    case = Case(rank, config.ffn_width, tokens, dtype, "2:4" if sparse else None, direction, compiled)
    return resolve_backend(config.backend, device, case, storage)


_IN_CHUNKS = f"plain PyTorch in chunks of {CHUNK_TOKENS} tokens"
_ALL_AGAIN = "hidden_backward_kernel and library products in backward; nothing d_ff wide kept"
_HARDWARE_FORM = "hidden_hardware_kernel writes features in the packed form that cuSPARSELt multiplies"
# By backend and by what is kept for backward.
_PATHS = {
    "reference": {
        "dense": "plain PyTorch, pre-activation and hidden features kept",
        "packed": f"{_IN_CHUNKS}, packed hidden features kept",
        "recompute": f"{_IN_CHUNKS}, nothing d_ff wide kept",
    },
    "triton": {
        "dense": "library products around a kernel that squares and selects",
        "packed": "hidden_kernel writes packed features, which are kept; library products",
        "recompute": f"fused_kernel at the ranks it covers, else hidden_kernel and a library product; {_ALL_AGAIN}",
    },
    "hopper": {
        "dense": "one CUDA kernel packs 2:4 features and keeps what they were before squaring, one multiplies on the "
        "sparse tensor cores; a CUDA kernel and library products in backward",
        "recompute": "one CUDA kernel chooses 2:4 in registers and multiplies on the sparse tensor cores at ranks to "
        "256, above them one packs and one multiplies; a CUDA kernel and library products in backward; nothing d_ff "
        "wide kept",
    },
    "cusparselt": {
        "packed": f"{_HARDWARE_FORM}, which are kept as they are; library products in backward",
        "recompute": f"{_HARDWARE_FORM}; {_ALL_AGAIN}",
    },
    "cusparselt_compress": {
        "recompute": f"hidden_kernel writes dense features, cuSPARSELt compresses and multiplies them; {_ALL_AGAIN}"
    },
}


def ffn_path(config: ModelConfig, device: torch.device, choice: BackendChoice | None = None) -> str:
    """In words what computes the feed-forward networks of a model, for logs and result files.

    Args:
        config: The model.
        device: Where it runs.
        choice: What ``ffn_choice`` decided. None: what the backend's name alone decides.

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
    choice = choice or resolve_backend(config.backend, device)
    paths, storage = _PATHS[choice.chosen], choice.storage or config.ffn_storage
    # without gradients the sparse product keeps nothing, whatever the storage; with them it is refused
    return paths.get(storage) or f"{paths['recompute']} (ffn_storage {storage} only without gradients)"


def ffns(part: nn.Module) -> list[FFN]:
    """The feed-forward networks of a decoder block, one or its experts in order, or of a whole model."""
    return [module for module in part.modules() if isinstance(module, FFN)]


def make_ffn(config: ModelConfig, layer: int) -> FFN:
    """A feed-forward network of one layer, a module that maps ``(..., C)`` to ``(..., C)``."""
    return SwiGLU(config, layer) if config.gated else UngatedFFN(config, layer)
