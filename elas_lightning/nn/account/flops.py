"""FLOPs of a model from its configuration alone.

FLOPs are counted as two per multiply-add of the matrix products: linear layers, head and attention scores.
Attention is counted as the full T × T product, without the causal half that a kernel may skip, as PaLM's
utilisation (arXiv 2204.02311) and torch's ``FlopCounterMode`` do. Element-wise work, norms, softmax and the
embedding's look-up are not counted. Backward takes two products for each of forward's (one for the input, one
for the weight). 2:4 products count as dense ones: what sparsity saves is measured, never assumed. What
they would come to if hardware did each in half the operations is a figure of its own, ``flops_with_24``. A product
is 2:4 where no four consecutive entries of an operand, along the axis that is summed over, hold more than two: patterns
2:4, 1:4 and 2:8 do so, whatever the method; 3:4 and unstructured sparsity have no such hardware. The feature-wise
backward counts the weight gradients next to its hidden features, whatever the pattern, without the features that it
leaves dense; that this project computes them by masks and dense products does not matter here.

Products that are computed a second time, by ``ffn_storage``, by checkpointing or in the forward of the feature-wise
backward (which needs the hidden features before it can choose among them), are work of the machine and
not of the model; they stand apart under ``recomputed``. What a fused attention kernel computes again inside
itself is not counted (torch counts a fifth product of backward there).
"""

from __future__ import annotations

import math

from elas_lightning.nn.account.parameters import PARTS, block_entries, block_layers, ffn_matrices
from elas_lightning.nn.config import Checkpointing, ModelConfig
from elas_lightning.nn.weights_config import SPARSE_24

# at most two of any four that a tensor core takes together
_HALVED = ("2:4", "1:4", "2:8")


def _forward(config: ModelConfig, sequence_length: int) -> dict[str, int]:
    parts = {
        "attention": 2 * block_entries(config, "attention").multiply_adds,
        "ffn": 2 * block_entries(config, "ffn").multiply_adds,
        "head": 2 * config.vocab_size * config.hidden_size,
    }
    # q·k and weights·v, each T × C multiply-adds for a token
    parts["attention_scores"] = config.num_layers * 2 * 2 * sequence_length * config.hidden_size
    return parts


def _sparse_products(config: ModelConfig) -> dict[str, int]:
    """FLOPs of forward's and of backward's products that sum over the axis along which an operand is 2:4.

    Forward: the matrix that reads a sparse site. Backward: with the masked gradient, the product that carries
    the gradient of a sparse site on to the input of the matrix before it. A weight's gradient sums over
    tokens, along which only the feature-wise backward makes anything 2:4. With 2:4 weights every product of
    forward counts, and where they are transposable also the one with the gradient.
    """
    account = {"forward": 0, "backward": 2 * len(config.sparse_layers) * _feature_wise(config)}
    weights = config.weights
    for part in PARTS:
        if weights.method in SPARSE_24 and weights.reaches(part):
            multiply_adds = sum(layer.multiply_adds for layer in block_layers(config, part))
            account["forward"] += 2 * config.num_layers * multiply_adds
            if weights.method == "transposable":
                account["backward"] += 2 * config.num_layers * multiply_adds
            continue
        for direction, products in _sparse_sites(config, part).items():
            account[direction] += 2 * len(config.sparse_layers) * products
    return account


def _feature_wise(config: ModelConfig) -> int:
    """Multiply-adds of one block's weight gradients that sum over tokens along which features are 2:4."""
    if config.sparsity.backward != "feature_wise":
        return 0
    sparse = config.ffn_width - math.ceil(config.sparsity.backward_dense_share * config.ffn_width)
    products = ffn_matrices(config) * sparse * (config.layer_rank("ffn") or config.hidden_size)
    return config.experts.per_token * products


def _sparse_sites(config: ModelConfig, part: str) -> dict[str, int]:
    """Multiply-adds of one block's products that read a site whose pattern 2:4 hardware knows, or its masked gradient.

    The masked gradient is as sparse as the features, but for a soft threshold's: the entry that is the threshold
    carries gradient, too, and only 1:4 has room for it.
    """
    sparsity = config.sparsity
    if sparsity.pattern not in _HALVED:
        return {"forward": 0, "backward": 0}
    width, hidden, rank = config.hidden_size, config.ffn_width, config.layer_rank("ffn")
    attention_read = config.layer_rank("attention") or width  # outputs of a matrix's first product
    ffn_read = rank or width
    inputs = ffn_matrices(config) - 1  # matrices that read the FFN's input: up, and gate
    forward = {
        "attention_input": 3 * width * attention_read,
        "attention_output": width * attention_read,
        "ffn_input": inputs * width * (rank or hidden),
        "ffn_hidden": hidden * ffn_read,
        "ffn_bottleneck": (rank or 0) * (inputs * hidden + width),
    }
    # a site without a matrix before it, behind a norm or behind attention, passes its sparsity on to nothing
    masked = {"ffn_hidden": inputs * hidden * ffn_read, "ffn_bottleneck": (rank or 0) * (inputs * width + hidden)}
    placed = [site for site in sparsity.placement if site.startswith(part)]
    exact = sparsity.gradient == "masked"
    exact &= sparsity.method != "soft_threshold" or sparsity.pattern == "1:4"
    times = config.experts.per_token if part == "ffn" else 1
    return {
        "forward": times * sum(forward[site] for site in placed),
        "backward": times * sum(masked.get(site, 0) for site in placed) if exact else 0,
    }


def _feature_wise_layers(config: ModelConfig) -> int:
    return len(config.sparse_layers) if config.sparsity.backward == "feature_wise" else 0


def _before_choosing(config: ModelConfig) -> int:
    """Products that all feature-wise FFNs spend in forward to learn which entries their weight gradients will keep."""
    products = (ffn_matrices(config) - 1) * config.ffn_width * (config.layer_rank("ffn") or config.hidden_size)
    return 2 * _feature_wise_layers(config) * config.experts.per_token * products


def _checkpointed(config: ModelConfig, forward: dict[str, int], checkpointing: Checkpointing) -> int:
    """Products of all blocks that checkpointing computes again."""
    if checkpointing == "none":
        return 0
    again = sum(flops for part, flops in forward.items() if part != "head")
    width, hidden, rank = config.hidden_size, config.ffn_width, config.layer_rank("ffn")
    multiply_adds = 2 * config.num_layers
    stored = config.ffn_storage != "dense"
    # torch stops as soon as it has what backward needs: a block's last product is not among it, unless it is inside
    # an operator of our own or an expert's, which is weighted
    within = config.num_layers if stored else _feature_wise_layers(config)
    stopped = 0 if config.experts.count > 1 else config.num_layers - (within if rank is None else 0)
    again += _before_choosing(config) - 2 * stopped * (rank or hidden) * width
    if checkpointing == "bottleneck":
        inputs = ffn_matrices(config) - 1
        firsts = 4 * width * (config.layer_rank("attention") or 0)
        firsts += config.experts.per_token * (inputs * width + (0 if stored else hidden)) * (rank or 0)
        again -= multiply_adds * firsts
    return again


def _recomputed(config: ModelConfig, forward: dict[str, int], checkpointing: Checkpointing) -> int:
    up = 2 * config.num_layers * config.ffn_width * (config.layer_rank("ffn") or config.hidden_size)
    up *= config.experts.per_token
    exact = config.sparsity.gradient == "masked"
    # packed features give relu(x) back where they were kept, which is all that the masked gradient asks for
    again = up if config.ffn_storage == "recompute" else 0
    if config.ffn_storage == "packed":
        sparse = len(config.sparse_layers) if exact else 0
        again = up * (config.num_layers - sparse) // config.num_layers
    return again + _before_choosing(config) + _checkpointed(config, forward, checkpointing)


def flops_by_part(
    config: ModelConfig, sequence_length: int, checkpointing: Checkpointing | None = None
) -> dict[str, dict[str, int]]:
    """Count the floating-point operations of training on one token, by direction and part.

    Args:
        config: The model.
        sequence_length: T, which attention scores grow with.
        checkpointing: What backward computes again; None takes the model's own.

    Returns:
        ``forward`` and ``backward``, each with ``attention``, ``attention_scores``, ``ffn``, ``head``, their
        sum ``total``, and ``flops_with_24``: the sum with 2:4 products at half, see the file's top;
        ``recomputed``, its ``total``; and ``composed``, whose ``total`` is of a whole micro-batch and not of a
        token: what SLTrain and ReLoRA spend on making their matrices, three products each, and a fourth where
        checkpointing makes them again.
    """
    checkpointing = checkpointing or config.checkpointing
    parts = _forward(config, sequence_length)
    halved = _sparse_products(config)
    account = {}
    for direction, factor in (("forward", 1), ("backward", 2)):
        total = factor * sum(parts.values())
        account[direction] = {
            **{part: factor * flops for part, flops in parts.items()},
            "total": total,
            "flops_with_24": total - halved[direction] // 2,
        }
    composition = sum(block_entries(config, part).composition for part in PARTS)
    return {
        **account,
        "recomputed": {"total": _recomputed(config, parts, checkpointing)},
        "composed": {"total": (3 if checkpointing == "none" else 4) * 2 * composition},
    }


def flops_per_token(config: ModelConfig, sequence_length: int) -> dict[str, int]:
    """Count the floating-point operations of training on one token; the file's top says what counts.

    Args:
        config: The model.
        sequence_length: T, which attention scores grow with.

    Returns:
        Forward by part (``attention``, ``attention_scores``, ``ffn``, ``head``), their sum ``forward``,
        ``backward``, and ``total``, forward and backward together; ``flops_with_24``, the total with 2:4
        products at half.
    """
    account = flops_by_part(config, sequence_length)
    forward, backward = account["forward"], account["backward"]
    return {
        **_forward(config, sequence_length),
        "forward": forward["total"],
        "backward": backward["total"],
        "total": forward["total"] + backward["total"],
        "flops_with_24": forward["flops_with_24"] + backward["flops_with_24"],
    }
