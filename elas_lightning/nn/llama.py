"""A LLaMA-style decoder, whole.

- pre-normalisation with RMSNorm, no biases, no dropout
- rotary position embedding in the rotate-half convention of Hugging Face models, so weights carry over
- causal attention through ``scaled_dot_product_attention``
- every linear layer of a block at full rank or as two low-rank factors (``nn/linear.py``)
- gated or ungated feed-forward networks (``nn/ffn.py``), one a layer or several with a router (``nn/experts.py``)
- weights that are sparse, composed or merged by a rule (``nn/weights/``)
- activation sparsity at five kinds of site, switched on and off together (``nn/sparsity.py``)
- embedding and head are full rank and not tied
- one token at a time after a prompt, through a cache of keys and values (``nn/cache.py``)

Module names are those of Hugging Face's LLaMA below its ``model.`` prefix.

Shape suffixes: B batch, T time, S time with what a cache holds, V vocabulary, C model width, H heads, D head size.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elas_lightning.nn.cache import Cache, LayerCache, visible
from elas_lightning.nn.checkpointing import run_block
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.experts import MixtureOfExperts
from elas_lightning.nn.ffn import FFN, make_ffn
from elas_lightning.nn.initialization import initialize
from elas_lightning.nn.linear import make_linear
from elas_lightning.nn.loss import linear_next_token_loss
from elas_lightning.nn.sparsity import SparsitySite, sites
from elas_lightning.nn.weights.attach import attach_rules
from elas_lightning.ops import resolve_backend

logger = logging.getLogger(__name__)


def rotary_angles(
    length: int, head_dim: int, theta: float, device: torch.device, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of the rotary embedding (RoFormer, arXiv 2104.09864).

    Args:
        length: T.
        head_dim: D, even.
        theta: Base of the frequencies.
        device: Where to make them.
        start: Position of the first.

    Returns:
        Two ``(T, 1, D)`` float32 tensors; the sine carries the minus sign of the first half of the features.
    """
    frequency_d = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    position_T = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angle_T1d = torch.outer(position_T, frequency_d)[:, None]
    cos_T1d, sin_T1d = angle_T1d.cos(), angle_T1d.sin()
    return torch.cat((cos_T1d, cos_T1d), -1), torch.cat((-sin_T1d, sin_T1d), -1)


def rotate(x_BTHD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Turn each pair ``(x[i], x[i + D/2])`` by its angle.

    Args:
        x_BTHD: Queries or keys.
        cos_T1D: From ``rotary_angles``.
        sin_T1D: From ``rotary_angles``.

    Returns:
        ``(B, T, H, D)`` in the dtype of ``x_BTHD``; computed in float32 where that is wider.
    """
    first, second = x_BTHD.chunk(2, -1)
    return (x_BTHD * cos_T1D + torch.cat((second, first), -1) * sin_T1D).type_as(x_BTHD)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.input_site = SparsitySite("attention_input", config, layer)
        self.output_site = SparsitySite("attention_output", config, layer)
        silu = config.bottleneck_activation is not None
        width, rank = config.hidden_size, config.layer_rank("attention")
        self.q_proj = make_linear(width, width, rank, silu=silu)
        self.k_proj = make_linear(width, width, rank, silu=silu)
        self.v_proj = make_linear(width, width, rank, silu=silu)
        self.o_proj = make_linear(width, width, rank, silu=silu)

    def forward(self, x_BTC: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, past: LayerCache | None = None) -> Tensor:
        """Attend: ``(B, T, C)`` to ``(B, T, C)``; with a cache, to what it holds as well, and add to it."""
        x_BTC = self.input_site(x_BTC)
        per_head = (*x_BTC.shape[:2], -1, self.head_dim)
        q_BHTD = rotate(self.q_proj(x_BTC).view(per_head), cos_T1D, sin_T1D).transpose(1, 2)
        k_BHSD = rotate(self.k_proj(x_BTC).view(per_head), cos_T1D, sin_T1D).transpose(1, 2)
        v_BHSD = self.v_proj(x_BTC).view(per_head).transpose(1, 2)
        mask_TS, causal = None, True
        if past is not None:
            causal = past.length == 0
            k_BHSD, v_BHSD = past.append(k_BHSD, v_BHSD)
            mask_TS = None if causal else visible(x_BTC.shape[1], past.length, x_BTC.device)
        out_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, mask_TS, is_causal=causal)
        return self.o_proj(self.output_site(out_BHTD.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and feed-forward network, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        several = config.experts.count > 1
        self.mlp: FFN | MixtureOfExperts = MixtureOfExperts(config, layer) if several else make_ffn(config, layer)

    def forward(self, x_BTC: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, past: LayerCache | None = None) -> Tensor:
        """Map the residual stream ``(B, T, C)`` to the next."""
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), cos_T1D, sin_T1D, past)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))


class Llama(nn.Module):
    """The decoder: token ids in, logits of the next token out; :meth:`hidden` stops before the head.

    It is made and initialised on torch's default device, every placed 2:4 site switched on.

    Args:
        config: What to build.

    Raises:
        UserError: The configured backend cannot run.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        place = torch.get_default_device()
        if place.type in ("cpu", "meta"):  # built there, then moved: by Lightning, or with weights from a file
            place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        choice = resolve_backend(config.backend, place)
        logger.info("backend %s (asked for: %s): %s", choice.chosen, choice.requested, choice.why)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialize(self, config)
        attach_rules(self.layers, config)
        for number, site in enumerate(sites(self)):
            site.number = number

    @property
    def sparsity_active(self) -> bool:
        """Whether any site makes its features 2:4 at present; never true of a dense model."""
        return any(site.active for site in sites(self))

    def set_sparsity(self, active: bool) -> None:
        """Switch every placed 2:4 site on or off, as the dense warm-up asks.

        The state is not saved with the weights. A compiled model recompiles once at each change.

        Args:
            active: On or off; a dense model stays dense either way.
        """
        for site in sites(self):
            site.set_active(active)

    def set_noise(self, *counters: int) -> None:
        """Choose the random numbers of stochastic sparsity for the next training step; nothing for other methods.

        Args:
            counters: What tells this forward pass from every other one of the run, such as seed, step and rank.
        """
        for site in sites(self):
            site.set_key(*counters)

    def _mixtures(self) -> list[MixtureOfExperts]:
        return [block.mlp for block in self.layers if isinstance(block.mlp, MixtureOfExperts)]

    def balance_loss(self) -> Tensor | float:
        """What the routers of the last call add to the training loss: their balance, summed over layers, weighted.

        To be asked for once, before backward; 0 for a model without routers.
        """
        loss: Tensor | float = 0.0
        for mixture in self._mixtures():
            loss = loss + self.config.experts.balance * mixture.take_balance()
        return loss

    def hidden(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Run the decoder up to the head, which training fuses with its loss (``nn/loss.py``).

        Args:
            input_ids: ``(B, T)`` int64.
            cache: What came before ``input_ids``, to which they are added; None: they begin a text.

        Returns:
            ``(B, T, C)``: the normalised features that the head reads.

        Raises:
            ValueError: The cache is too small.
        """
        x_BTC = self.embed_tokens(input_ids)
        config = self.config
        start = 0 if cache is None else cache.length
        cos_T1D, sin_T1D = rotary_angles(x_BTC.shape[1], config.head_dim, config.rope_theta, x_BTC.device, start)
        for mixture in self._mixtures():
            mixture.balance = None
        further_on = sites(self) if start and config.sparsity.stochastic else []
        try:
            for site in further_on:
                site.start = start
            for index, block in enumerate(self.layers):
                past = None if cache is None else cache.layers[index]
                x_BTC = run_block(block, config, x_BTC, cos_T1D, sin_T1D, past)
        finally:
            for site in further_on:
                site.start = 0
        return self.norm(x_BTC)

    def forward(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Predict.

        Args:
            input_ids: ``(B, T)`` int64.
            cache: As for :meth:`hidden`.

        Returns:
            ``(B, T, V)``: at each position the logits of the token after it.
        """
        return self.lm_head(self.hidden(input_ids, cache))

    def loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predict and compare, without ever holding the logits of a batch.

        Args:
            input_ids: ``(B, T)`` int64.
            labels: ``(B, T)`` int64, aligned with the positions that predict them; -100 is none.

        Returns:
            The summed negative log-likelihood in nats and the number of targets, both scalar.
        """
        return linear_next_token_loss(self.hidden(input_ids), self.lm_head.weight, labels)
