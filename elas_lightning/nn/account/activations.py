"""What autograd keeps from forward to backward, tensor by tensor, from the model's configuration alone.

The rules are those of eager PyTorch on the code in ``nn/`` and ``ops/``, as ``saved_tensors_hooks`` shows them:

- a matrix product keeps what it reads; under autocast each product that reads a float32 tensor keeps a bfloat16
  copy of its own, so q, k and v keep three;
- attention is the fused kernel, which keeps q, k, v, its output and one float32 number a query and head, whatever
  the length (on a CPU torch always takes it; on a GPU with 16 bits flash attention, in float32 the
  memory-efficient kernel, whose rows are padded to 32);
- RMSNorm works in float32; on a GPU it is one kernel and keeps its input alone;
- an activation keeps what its derivative needs: ReLU its output, SiLU and GELU their input, a product both factors;
- a 2:4 site with the straight-through gradient keeps nothing, with the masked one a byte for each entry;
- the fused head and loss keep the gradients that they have already made (``nn/loss.py``).

``torch.compile`` may keep less: its partitioner chooses. Index tensors and scalars are left out.

Shape suffixes are not used: all sizes are bytes, of the whole micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from elas_lightning.errors import UserError
from elas_lightning.nn.account.parameters import ffn_matrices
from elas_lightning.nn.account.step import TrainingStep
from elas_lightning.nn.config import ModelConfig

Kind = Literal["embedding", "norms", "attention", "ffn", "head"]


@dataclass(frozen=True)
class Kept:
    """One tensor, or several of one name, that stay until backward: ``layer`` is None outside the blocks."""

    layer: int | None
    kind: Kind
    name: str
    bytes: int


class _Rules:
    """The rules at the file's top for one model and step; sizes in bytes a token."""

    def __init__(self, config: ModelConfig, step: TrainingStep, layer: int) -> None:
        self.config = config
        self.step = step
        self.product = step.product_bytes
        sites = config.sparsity.placement if step.sparse and layer in config.sparse_layers else ()
        self.sites = frozenset(sites)
        self.exact = config.sparsity.gradient == "masked"

    def mask(self, site: str, width: int) -> int:
        """The masked gradient's byte for each entry of a site that is on."""
        return width if site in self.sites and self.exact else 0

    def read(self, width: int, matrices: int) -> int:
        """A normalised copy of the residual stream that several matrices read."""
        return self.product * width * (matrices if self.step.mixed else 1)

    def bottleneck(self, rank: int | None, site: str | None = None) -> int:
        """Between the factors of one matrix: what B reads, and what SiLU reads."""
        if rank is None:
            return 0
        tensors = 2 if self.config.bottleneck_activation else 1
        return self.product * tensors * rank + (self.mask(site, rank) if site else 0)

    def norm(self) -> int:
        width = self.config.hidden_size
        if self.step.device == "cuda":
            return self.step.parameter_bytes * width + 4
        return 2 * 4 * width + 4

    def attention(self) -> Iterator[tuple[str, int]]:
        config, product = self.config, self.product
        width, rank = config.hidden_size, config.layer_rank("attention")
        yield "input", self.read(width, 3) + self.mask("attention_input", width)
        yield "bottlenecks", 4 * self.bottleneck(rank)
        yield "q, k, v", 3 * product * width
        yield "log-sum-exp", 4 * config.num_heads
        yield "output", product * width
        if "attention_output" in self.sites:
            yield "2:4 output", product * width + self.mask("attention_output", width)

    def ffn(self) -> Iterator[tuple[str, int]]:
        config = self.config
        width, inputs = config.hidden_size, ffn_matrices(config) - 1
        yield "input", self.read(width, inputs) + self.mask("ffn_input", width)
        between = self.bottleneck(config.layer_rank("ffn"), "ffn_bottleneck")
        yield "bottlenecks", ffn_matrices(config) * between
        yield "hidden", self.hidden()

    def first_products(self) -> int:
        """What the first factors of a block leave, which CoLA-M keeps."""
        config = self.config
        # a stored FFN is one operator, whose last product is not seen from outside
        of_ffn = ffn_matrices(config) if config.ffn_storage == "dense" else 1
        ranks = 4 * (config.layer_rank("attention") or 0) + of_ffn * (config.layer_rank("ffn") or 0)
        return self.product * ranks

    def hidden(self) -> int:
        """All that is d_ff wide."""
        config, product, width = self.config, self.product, self.config.ffn_width
        sparse = "ffn_hidden" in self.sites
        mask = self.mask("ffn_hidden", width)
        if config.gated:
            return 4 * product * width + mask  # gate, silu(gate), up, and what down reads
        if config.ffn_storage == "packed" and sparse:
            return product * width // 2 + width // 8
        if config.ffn_storage != "dense":
            return 0
        # Down reads ReLU's own output; every other activation, and every 2:4 step, makes a tensor more.
        tensors = 1 if config.ffn == "relu" and not sparse else 2
        return tensors * product * width + mask


def _block(config: ModelConfig, step: TrainingStep, layer: int) -> Iterator[Kept]:
    rules = _Rules(config, step, layer)
    yield Kept(layer, "norms", "two norms", 2 * rules.norm() * step.tokens)
    for name, size in rules.attention():
        yield Kept(layer, "attention", name, size * step.tokens)
    for name, size in rules.ffn():
        yield Kept(layer, "ffn", name, size * step.tokens)


def block_bytes(config: ModelConfig, step: TrainingStep, layer: int) -> int:
    """Bytes that one decoder block keeps, without checkpointing."""
    return sum(kept.bytes for kept in _block(config, step, layer))


def activations(config: ModelConfig, step: TrainingStep) -> list[Kept]:
    """List what is kept for backward; copies of weights are in ``memory_account``.

    Args:
        config: The model.
        step: The micro-batch.

    Returns:
        The tensors, by layer and kind; those outside the blocks last. The head's are gradients that exist already.

    Raises:
        UserError: ``checkpointing`` is ``bottleneck`` but no matrix of the blocks has one.
    """
    width, tokens = config.hidden_size, step.tokens
    if step.checkpointing == "bottleneck" and not (
        config.layer_rank("attention") or config.layer_rank("ffn")
    ):
        raise UserError(
            "account: checkpointing = 'bottleneck' is not possible: it keeps what low-rank factors leave between "
            "them; set model.config.attention_rank or ffn_rank, or choose block"
        )
    kept: list[Kept] = []
    for layer in range(config.num_layers):
        if step.checkpointing == "none":
            kept += _block(config, step, layer)
            continue
        kept.append(Kept(layer, "norms", "block input", step.parameter_bytes * width * tokens))
        if step.checkpointing == "bottleneck":
            size = _Rules(config, step, layer).first_products()
            kept.append(Kept(layer, "ffn", "bottlenecks of attention and FFN", size * tokens))
    kept.append(Kept(None, "attention", "rotary angles", 2 * 4 * config.head_dim * step.sequence))
    kept.append(Kept(None, "norms", "last norm", _Rules(config, step, 0).norm() * tokens))
    kept.append(Kept(None, "head", "gradient of its input", step.parameter_bytes * width * tokens))
    kept.append(
        Kept(None, "head", "gradient of its weight", step.parameter_bytes * width * config.vocab_size)
    )
    return kept
