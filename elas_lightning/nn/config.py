"""What a model is: frozen dataclasses that refuse what cannot be built and derive what follows.

Every refusal is one line that names the field as a user writes it (``model.config.…``), the value and
what is allowed. ``from __future__ import annotations`` is absent on purpose: the command line reads the
annotations at run time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from elas_lightning.errors import UserError
from elas_lightning.nn.checks import check_choice, check_int, check_positive, is_int, refuse
from elas_lightning.nn.experts_config import ExpertsConfig
from elas_lightning.nn.sparsity_config import Placement, SparsityConfig
from elas_lightning.nn.weights_config import COMPOSED, Part, WeightsConfig
from elas_lightning.ops.backend import Backend
from elas_lightning.ops.ffn import Activation, Storage

FFNKind = Literal["swiglu", Activation]
Initialization = Literal["xavier", "cola", "spectral", "wide_lowrank"]
Checkpointing = Literal["none", "block", "bottleneck"]


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
        check_choice("ffn", self.ffn, FFNKind)
        check_choice("initialization", self.initialization, Initialization)
        check_choice("backend", self.backend, Backend)
        check_choice("ffn_storage", self.ffn_storage, Storage)
        check_choice("checkpointing", self.checkpointing, Checkpointing)
        if not isinstance(self.sparsity, SparsityConfig):
            raise refuse("sparsity", self.sparsity, "give a SparsityConfig")
        if not isinstance(self.weights, WeightsConfig):
            raise refuse("weights", self.weights, "give a WeightsConfig")
        if not isinstance(self.experts, ExpertsConfig):
            raise refuse("experts", self.experts, "give an ExpertsConfig")
        self._check_heads()
        self._check_rank("attention_rank", self.hidden_size)
        self._check_rank("ffn_rank", min(self.hidden_size, self.ffn_width))
        self._check_needs_factors()
        self._check_sparse_layers()
        self._check_sparse_widths()
        self._check_storage()
        self._check_weights()
        self._check_experts()

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

    def _check_heads(self) -> None:
        if self.hidden_size % self.num_heads:
            allowed = f"it must divide hidden_size = {self.hidden_size}"
            raise refuse("num_heads", self.num_heads, allowed)
        if self.head_dim % 2:
            allowed = f"hidden_size / num_heads = {self.head_dim} must be even, rotary embedding turns pairs"
            raise refuse("num_heads", self.num_heads, allowed)

    def _check_rank(self, key: str, largest: int) -> None:
        rank = getattr(self, key)
        if rank is not None and not (is_int(rank) and 1 <= rank <= largest):
            allowed = f"give 1 to {largest} (the layer's smaller dimension), or null for full rank"
            raise refuse(key, rank, allowed)

    def _check_needs_factors(self) -> None:
        needs = "it acts on low-rank factors: set attention_rank or ffn_rank, or "
        if self.bottleneck_activation is not None:
            check_choice("bottleneck_activation", self.bottleneck_activation, Literal["silu"])
        if self.attention_rank is not None or self.ffn_rank is not None:
            return
        if self.bottleneck_activation is not None:
            raise refuse("bottleneck_activation", self.bottleneck_activation, needs + "leave it null")
        if self.checkpointing == "bottleneck":
            raise refuse("checkpointing", self.checkpointing, needs + "choose block")
        if self.initialization != "xavier":
            raise refuse("initialization", self.initialization, needs + "leave it at xavier")

    def _check_sparse_layers(self) -> None:
        if not self.sparsity.placement:
            return
        layers = self.sparsity.layers
        shown = layers if isinstance(layers, str) else list(layers)
        if not self.sparse_layers:
            allowed = f"it selects none of {self.num_layers} layers; for a dense model set placement to []"
            raise refuse("sparsity.layers", shown, allowed)
        if not self.sparse_layers <= set(range(self.num_layers)):
            raise refuse("sparsity.layers", shown, f"indices run from 0 to {self.num_layers - 1}")

    def _check_sparse_widths(self) -> None:
        if "ffn_bottleneck" in self.sparsity.placement and self.ffn_rank is None:
            allowed = "ffn_bottleneck lies between low-rank factors: set ffn_rank, or leave it out"
            raise refuse("sparsity.placement", list(self.sparsity.placement), allowed)
        for site in self.sparsity.placement:
            field, width = self._site_width(site)
            multiple = self.sparsity.width_multiple
            if width % multiple:
                allowed = f"{self.sparsity.pattern} at {site} needs a width divisible by {multiple}, not {width}"
                raise refuse(field, getattr(self, field), allowed)

    def _site_width(self, site: Placement) -> tuple[str, int]:
        """The field that decides a site's width, and the width."""
        if site == "ffn_hidden":
            return "intermediate_size", self.ffn_width
        if site == "ffn_bottleneck":
            return "ffn_rank", self.ffn_rank or 0
        return "hidden_size", self.hidden_size

    def _check_storage(self) -> None:
        if self.gated and self.backend not in ("auto", "reference"):
            allowed = "its kernels are for an FFN without a gate: choose auto or reference for swiglu"
            raise refuse("backend", self.backend, allowed)
        self._check_plain_sparsity()
        if self.ffn_storage == "dense":
            return
        if self.ffn != "relu2":
            raise refuse("ffn_storage", self.ffn_storage, f"it needs ffn relu2, not {self.ffn}: choose dense")
        if self.ffn_storage == "packed" and "ffn_hidden" not in self.sparsity.placement:
            allowed = "it needs ffn_hidden in sparsity.placement: choose dense or recompute"
            raise refuse("ffn_storage", self.ffn_storage, allowed)
        if self.ffn_storage == "packed" and self.ffn_width % 8:
            allowed = f"it needs an FFN width divisible by 8, not {self.ffn_width}: choose dense or recompute"
            raise refuse("ffn_storage", self.ffn_storage, allowed)

    def _check_plain_sparsity(self) -> None:
        unknown = self.sparsity.only_plain_pytorch
        if "ffn_hidden" not in self.sparsity.placement or unknown is None:
            return
        allowed = f"it knows 2:4 by magnitude with the dense backward, not {unknown}: choose"
        if self.backend not in ("auto", "reference"):
            raise refuse("backend", self.backend, f"{allowed} auto or reference")
        if self.ffn_storage != "dense":
            raise refuse("ffn_storage", self.ffn_storage, f"{allowed} dense")

    def _check_weights(self) -> None:
        method = self.weights.method
        ranks = {"attention_rank": self.attention_rank, "ffn_rank": self.ffn_rank}
        if method == "oats" and any(ranks.values()):
            raise refuse("weights.method", method, "it decomposes full-rank matrices: set both ranks to null")
        if method in COMPOSED:
            self._check_composed(method, ranks)

    def _check_composed(self, method: str, ranks: dict[str, int | None]) -> None:
        """SLTrain and ReLoRA make one matrix of their factors, and start those as LoRA does."""
        for key, rank in ranks.items():
            if rank is None:
                raise refuse(key, rank, f"weights.method {method} has factors: give their rank")
        needs = f"weights.method {method} has nothing between its factors: "
        if self.bottleneck_activation is not None:
            raise refuse("bottleneck_activation", self.bottleneck_activation, needs + "set it to null")
        if "ffn_bottleneck" in self.sparsity.placement:
            raise refuse("sparsity.placement", list(self.sparsity.placement), needs + "leave it out")
        if self.checkpointing == "bottleneck":
            raise refuse("checkpointing", self.checkpointing, needs + "choose block")
        if self.initialization != "xavier":
            allowed = f"the factors of weights.method {method} start as LoRA's: set it to xavier"
            raise refuse("initialization", self.initialization, allowed)

    def _check_experts(self) -> None:
        count = self.experts.count
        if count == 1:
            return
        if self.weights.method != "plain":
            allowed = f"weights.method {self.weights.method} knows one FFN a layer: set it to 1, or choose plain"
            raise refuse("experts.count", count, allowed)
        if self.sparsity.stochastic and any(site.startswith("ffn") for site in self.sparsity.placement):
            allowed = (
                f"sparsity.method {self.sparsity.method} draws by a token's place in its text, which an expert does "
                "not see: set it to 1, or choose magnitude, soft_threshold or first"
            )
            raise refuse("experts.count", count, allowed)
