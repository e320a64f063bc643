"""What autograd keeps from forward to backward, tensor by tensor, from the model's configuration alone.

The rules are those of eager PyTorch on the code in ``nn/`` and ``ops/``, as ``saved_tensors_hooks`` shows them:

- a matrix product keeps what it reads; under autocast each product that reads a float32 tensor keeps a bfloat16
  copy of its own, so q, k and v keep three;
- attention is the fused kernel, which keeps q, k, v, its output and one float32 number a query and head, whatever
  the length (on a CPU torch always takes it; on a GPU with 16 bits flash attention, in float32 the
  memory-efficient kernel, whose rows are padded to 32);
- RMSNorm works in float32; on a GPU it is one kernel and keeps its input alone;
- an activation keeps what its derivative needs: ReLU its output, SiLU and GELU their input, a product both factors;
- a sparse site with the straight-through gradient keeps nothing; with the masked one a byte for each entry, beside
  which ``mvue`` keeps a float64 factor and ``soft_threshold`` a second mask, its input, signs and thresholds; a kernel
  reads its input again and keeps that alone (``auto`` counts as plain PyTorch);
- the feature-wise backward keeps its mask, a byte for each hidden feature;
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
from elas_lightning.ops.patterns import width_multiple

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

    def selection(self, site: str, width: int, *, entry: int | None = None, input_kept: bool = False) -> int:
        """What a site's own step keeps, of which ``entry`` is the size of its input's entries.

        ``input_kept`` says that something else keeps that input, too.
        """
        if site not in self.sites or not self.exact:
            return 0
        entry = self.product if entry is None else entry
        whole, sparsity = 0 if input_kept else entry * width, self.config.sparsity
        if sparsity.kernel_backend(self.config.backend) == "triton":
            return whole
        if sparsity.method == "mvue":
            return (1 + 8) * width
        if sparsity.method == "soft_threshold":
            group = width if sparsity.pattern == "unstructured" else width_multiple(sparsity.pattern)
            return 2 * width + whole + entry * (width + width // group)
        return width

    def read(self, width: int, matrices: int) -> int:
        """A normalised copy of the residual stream that several matrices read."""
        return self.product * width * (matrices if self.step.mixed else 1)

    def bottleneck(self, rank: int | None, site: str | None = None) -> int:
        """Between the factors of one matrix: what B reads, and what SiLU reads."""
        if rank is None:
            return 0
        tensors = 2 if self.config.bottleneck_activation else 1
        return self.product * tensors * rank + (self.selection(site, rank) if site else 0)

    def normalised(self, site: str) -> int:
        """The step at a norm's output, which has the residual stream's precision."""
        return self.selection(site, self.config.hidden_size, entry=self.step.parameter_bytes)

    def norm(self) -> int:
        width = self.config.hidden_size
        if self.step.device == "cuda":
            return self.step.parameter_bytes * width + 4
        return 2 * 4 * width + 4

    def attention(self) -> Iterator[tuple[str, int]]:
        config, product = self.config, self.product
        width, rank = config.hidden_size, config.layer_rank("attention")
        yield "input", self.read(width, 3) + self.normalised("attention_input")
        yield "bottlenecks", 4 * self.bottleneck(rank)
        yield "q, k, v", 3 * product * width
        yield "log-sum-exp", 4 * config.num_heads
        yield "output", product * width
        if "attention_output" in self.sites:
            step = self.selection("attention_output", width, input_kept=True)
            yield "sparse output", product * width + step

    def ffn(self) -> Iterator[tuple[str, int]]:
        """Of all the experts that a token goes through."""
        for name, size in self.expert():
            yield name, self.config.experts.per_token * size
        if self.config.experts.count > 1:
            yield "routing", self.routing()

    def routing(self) -> int:
        """What the router reads and gives, in float32; what experts give, before it is weighted; and where it goes."""
        count, chosen = self.config.experts.count, self.config.experts.per_token
        width = self.config.hidden_size
        return 4 * (width + count + chosen) + self.product * chosen * width + 3 * 8 * chosen

    def expert(self) -> Iterator[tuple[str, int]]:
        config = self.config
        width, inputs = config.hidden_size, ffn_matrices(config) - 1
        yield "input", self.read(width, inputs) + self.normalised("ffn_input")
        between = self.bottleneck(config.layer_rank("ffn"), "ffn_bottleneck")
        yield "bottlenecks", ffn_matrices(config) * between
        yield "hidden", self.hidden()
        if "ffn_hidden" in self.sites and config.sparsity.backward == "feature_wise":
            yield "mask along the tokens", config.ffn_width

    def first_products(self) -> int:
        """What the first factors of a block leave, which CoLA-M keeps."""
        config = self.config
        # a stored FFN is one operator, whose last product is not seen from outside
        of_ffn = ffn_matrices(config) if config.ffn_storage == "dense" else 1
        of_ffn *= config.experts.per_token
        ranks = 4 * (config.layer_rank("attention") or 0) + of_ffn * (config.layer_rank("ffn") or 0)
        return self.product * ranks

    def hidden(self) -> int:
        """All that is d_ff wide."""
        config, product, width = self.config, self.product, self.config.ffn_width
        sparse = "ffn_hidden" in self.sites
        step = self.hidden_step()
        if config.gated:
            return 4 * product * width + step  # gate, silu(gate), up, and what down reads
        if config.ffn_storage == "packed" and sparse:
            return product * width // 2 + width // 8
        if config.ffn_storage != "dense":
            return 0
        if config.backend == "hopper" and sparse:
            return product * width  # relu of the pre-activations, kept by an operator of its own
        # Down reads ReLU's own output; every other activation, and every sparsity step, makes a tensor more.
        tensors = 1 if config.ffn == "relu" and not sparse else 2
        return tensors * product * width + step

    def hidden_step(self) -> int:
        config = self.config
        if config.ffn == "relu2" and config.sparsity.kernel_backend(config.backend) == "triton":
            return 0  # one kernel squares and selects, from the pre-activation that is counted already
        return self.selection("ffn_hidden", config.ffn_width, input_kept=config.ffn == "relu")


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
    if step.checkpointing == "bottleneck" and not (config.layer_rank("attention") or config.layer_rank("ffn")):
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
    kept.append(Kept(None, "head", "gradient of its weight", step.parameter_bytes * width * config.vocab_size))
    return kept
