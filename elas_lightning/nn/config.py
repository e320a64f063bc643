"""What a model is: frozen dataclasses that refuse what cannot be built and derive what follows.

Every refusal is one line that names the field as a user writes it (``model.config.…``), the value and
what is allowed. ``from __future__ import annotations`` is absent on purpose: the command line reads the
annotations at run time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from elas_lightning.errors import UserError
from elas_lightning.nn.checks import check_choice, check_int, check_positive, is_int, refuse
from elas_lightning.nn.experts_config import ExpertsConfig
from elas_lightning.nn.sparsity_config import SparsityConfig
from elas_lightning.nn.weights_config import COMPOSED, Part, WeightsConfig
from elas_lightning.ops.backend import Backend
from elas_lightning.ops.ffn import Activation, Storage

FFNKind = Literal["swiglu", Activation]
Initialization = Literal["xavier", "cola", "spectral", "wide_lowrank"]
Checkpointing = Literal["none", "block", "bottleneck"]

_CHOICES = {
    "ffn": FFNKind,
    "initialization": Initialization,
    "backend": Backend,
    "ffn_storage": Storage,
    "checkpointing": Checkpointing,
}


@dataclass(frozen=True)
class ModelConfig:
    """One LLaMA-style decoder: full rank or low rank, gated or not, dense or 2:4 sparse.

    Attributes:
        vocab_size: Rows of the embedding and of the (untied) head.
        hidden_size: Width of the residual stream.
        intermediate_size: SwiGLU width. An ungated FFN is 1.5 times as wide, see ``ffn_width``.
        ffn_width_multiple: What the width of an ungated FFN is rounded up to a multiple of. 16 suits 2:4 and the
            tensor cores; a smaller one lets a control of given size be matched closely.
        num_layers: Decoder blocks.
        num_heads: Attention heads; they divide ``hidden_size`` into even head sizes (RoPE turns pairs).
        attention_rank: Rank of q, k, v and o; None means full rank.
        ffn_rank: Rank of the FFN matrices; None means full rank.
        ffn: ``swiglu`` (gated) or the activation of an ungated FFN.
        bottleneck_activation: ``silu`` puts CoLA's SiLU between the factors of every low-rank layer.
        initialization: How the factors start, see ``elas_lightning.nn.initialization``.
        initializer_range: Standard deviation of full-rank matrices, embedding and head.
        norm_eps: Epsilon of RMSNorm.
        rope_theta: Base of the rotary frequencies.
        backend: What computes the low-rank FFN, see ``elas_lightning.ops.resolve_backend``.
        ffn_storage: What an FFN with squared ReLU keeps for backward: ``dense`` (all), ``packed`` (the hidden
            features in 2:4 form; nothing where the 2:4 step is off, as in the dense warm-up) or ``recompute``
            (nothing that is d_ff wide), see ``elas_lightning.ops.lowrank_ffn``.
        checkpointing: What backward computes again instead of keeping it: ``none``; ``block``: each decoder block
            as a whole, from its input; ``bottleneck``: the same, but what the first factor of each low-rank layer
            gives is kept (CoLA-M), see ``elas_lightning.nn.checkpointing``.
        sparsity: Where activations become 2:4.
        weights: What becomes of the weights of attention and FFN.
        experts: How many FFNs a layer has, between which a router chooses.
    """

    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int = 1376
    ffn_width_multiple: int = 16
    num_layers: int = 8
    num_heads: int = 8
    attention_rank: int | None = None
    ffn_rank: int | None = None
    ffn: FFNKind = "swiglu"
    bottleneck_activation: Literal["silu"] | None = None
    initialization: Initialization = "xavier"
    initializer_range: float = 0.02
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    backend: Backend = "auto"
    ffn_storage: Storage = "dense"
    checkpointing: Checkpointing = "none"
    sparsity: SparsityConfig = SparsityConfig()  # noqa: RUF009 (frozen)
    weights: WeightsConfig = WeightsConfig()  # noqa: RUF009 (frozen)
    experts: ExpertsConfig = ExpertsConfig()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        for key in ("vocab_size", "hidden_size", "intermediate_size", "ffn_width_multiple", "num_layers", "num_heads"):
            check_int(key, getattr(self, key), 1)
        for key in ("initializer_range", "norm_eps", "rope_theta"):
            check_positive(key, getattr(self, key))
        for key, literal in _CHOICES.items():
            check_choice(key, getattr(self, key), literal)
        for key, part, allowed in (
            ("sparsity", SparsityConfig, "give a SparsityConfig"),
            ("weights", WeightsConfig, "give a WeightsConfig"),
            ("experts", ExpertsConfig, "give an ExpertsConfig"),
        ):
            if not isinstance(getattr(self, key), part):
                raise refuse(key, getattr(self, key), allowed)
        for key, allowed in self._misfits():
            value = attrgetter(key)(self)
            raise refuse(key, list(value) if isinstance(value, tuple) else value, allowed)

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """The config that ``dataclasses.asdict`` wrote, as checkpoints and result files hold it.

        Raises:
            UserError: As the constructor, or there are other fields.
        """
        try:
            parts = {
                "sparsity": SparsityConfig(**fields["sparsity"]),
                "weights": WeightsConfig(**fields["weights"]),
                "experts": ExpertsConfig(**fields.get("experts", {})),  # older ones have none
            }
            return cls(**{**fields, **parts})
        except (KeyError, TypeError) as error:
            raise UserError(
                f"the model's configuration is not of this version of elas-lightning ({error}): use that which wrote it"
            ) from error

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate (three matrices) or not (two)."""
        return self.ffn == "swiglu"

    @property
    def ffn_width(self) -> int:
        """Hidden features of the FFN.

        An ungated FFN has two matrices where SwiGLU has three, so 1.5 times the width spends the same
        parameters; rounded up to a multiple of ``ffn_width_multiple``.
        """
        if self.gated:
            return self.intermediate_size
        multiple = self.ffn_width_multiple
        return -(-3 * self.intermediate_size // (2 * multiple)) * multiple

    def layer_rank(self, part: Part) -> int | None:
        """Rank of the factors that a part's linear layers are; None where each is one matrix.

        SLTrain and ReLoRA have a rank and yet one matrix, which they make of factors of their own.
        """
        rank = self.ffn_rank if part == "ffn" else self.attention_rank
        return None if self.weights.method in COMPOSED else rank

    @property
    def sparse_layers(self) -> frozenset[int]:
        """Indices of the decoder layers that carry the sparse sites; empty for a dense model."""
        if not self.sparsity.placement:
            return frozenset()
        half = self.num_layers // 2
        match self.sparsity.layers:
            case "all":
                return frozenset(range(self.num_layers))
            case "first_half":
                return frozenset(range(half))
            case "second_half":
                return frozenset(range(half, self.num_layers))
            case indices:
                return frozenset(indices)

    def _misfits(self) -> Iterator[tuple[str, str]]:
        """Fields that do not fit the others, and what is allowed; each holds that those before it have been mended."""
        if self.hidden_size % self.num_heads:
            yield "num_heads", f"it must divide hidden_size = {self.hidden_size}"
        if self.head_dim % 2:
            yield "num_heads", f"hidden_size / num_heads = {self.head_dim} must be even, rotary embedding turns pairs"
        for key, largest in (("attention_rank", self.hidden_size), ("ffn_rank", min(self.hidden_size, self.ffn_width))):
            rank = getattr(self, key)
            if rank is not None and not (is_int(rank) and 1 <= rank <= largest):
                yield key, f"give 1 to {largest} (the layer's smaller dimension), or null for full rank"
        yield from self._misfits_of_full_rank()
        yield from self._misfits_of_sites()
        yield from self._misfits_of_backend()
        if self.weights.method == "oats" and (self.attention_rank or self.ffn_rank):
            yield "weights.method", "it decomposes full-rank matrices: set both ranks to null"
        if self.weights.method in COMPOSED:
            yield from self._misfits_of_composed_weights()
        if self.experts.count > 1:
            yield from self._misfits_of_experts()

    def _misfits_of_full_rank(self) -> Iterator[tuple[str, str]]:
        if self.bottleneck_activation is not None:
            check_choice("bottleneck_activation", self.bottleneck_activation, Literal["silu"])
        if self.attention_rank is not None or self.ffn_rank is not None:
            return
        needs = "it acts on low-rank factors: set attention_rank or ffn_rank, or "
        if self.bottleneck_activation is not None:
            yield "bottleneck_activation", needs + "leave it null"
        if self.checkpointing == "bottleneck":
            yield "checkpointing", needs + "choose block"
        if self.initialization != "xavier":
            yield "initialization", needs + "leave it at xavier"

    def _misfits_of_sites(self) -> Iterator[tuple[str, str]]:
        placement, multiple = self.sparsity.placement, self.sparsity.width_multiple
        if placement and not self.sparse_layers:
            allowed = f"it selects none of {self.num_layers} layers; for a dense model set placement to []"
            yield "sparsity.layers", allowed
        if not self.sparse_layers <= set(range(self.num_layers)):
            yield "sparsity.layers", f"indices run from 0 to {self.num_layers - 1}"
        if "ffn_bottleneck" in placement and self.ffn_rank is None:
            yield "sparsity.placement", "ffn_bottleneck lies between low-rank factors: set ffn_rank, or leave it out"
        deciding = {"ffn_hidden": "intermediate_size", "ffn_bottleneck": "ffn_rank"}
        widths = {"intermediate_size": self.ffn_width, "ffn_rank": self.ffn_rank or 0, "hidden_size": self.hidden_size}
        for site in placement:
            field = deciding.get(site, "hidden_size")
            width = widths[field]
            if width % multiple:
                yield field, f"{self.sparsity.pattern} at {site} needs a width divisible by {multiple}, not {width}"

    def _misfits_of_backend(self) -> Iterator[tuple[str, str]]:
        by_kernels, stored = self.backend not in ("auto", "reference"), self.ffn_storage != "dense"
        if self.gated and by_kernels:
            yield "backend", "its kernels are for an FFN without a gate: choose auto or reference for swiglu"
        hidden, unknown = "ffn_hidden" in self.sparsity.placement, self.sparsity.only_plain_pytorch
        if hidden and unknown is not None:
            known = f"it knows 2:4 by magnitude with the dense backward, not {unknown}: choose"
            if by_kernels:
                yield "backend", f"{known} auto or reference"
            if stored:
                yield "ffn_storage", f"{known} dense"
        if stored and self.ffn != "relu2":
            yield "ffn_storage", f"it needs ffn relu2, not {self.ffn}: choose dense"
        if self.ffn_storage == "packed" and not hidden:
            yield "ffn_storage", "it needs ffn_hidden in sparsity.placement: choose dense or recompute"
        if self.ffn_storage == "packed" and self.ffn_width % 8:
            allowed = f"it needs an FFN width divisible by 8, not {self.ffn_width}: choose dense or recompute"
            yield "ffn_storage", allowed

    def _misfits_of_composed_weights(self) -> Iterator[tuple[str, str]]:
        """SLTrain and ReLoRA make one matrix of their factors, and start those as LoRA does."""
        method = f"weights.method {self.weights.method}"
        for key in ("attention_rank", "ffn_rank"):
            if getattr(self, key) is None:
                yield key, f"{method} has factors: give their rank"
        needs = f"{method} has nothing between its factors: "
        if self.bottleneck_activation is not None:
            yield "bottleneck_activation", needs + "set it to null"
        if "ffn_bottleneck" in self.sparsity.placement:
            yield "sparsity.placement", needs + "leave it out"
        if self.checkpointing == "bottleneck":
            yield "checkpointing", needs + "choose block"
        if self.initialization != "xavier":
            yield "initialization", f"the factors of {method} start as LoRA's: set it to xavier"

    def _misfits_of_experts(self) -> Iterator[tuple[str, str]]:
        if self.weights.method != "plain":
            allowed = f"weights.method {self.weights.method} knows one FFN a layer: set it to 1, or choose plain"
            yield "experts.count", allowed
        if self.sparsity.stochastic and any(site.startswith("ffn") for site in self.sparsity.placement):
            yield (
                "experts.count",
                f"sparsity.method {self.sparsity.method} draws by a token's place in its text, which an expert does "
                "not see: set it to 1, or choose magnitude, soft_threshold or first",
            )
