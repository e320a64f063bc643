"""What becomes of the weights of the decoder's linear layers: a frozen dataclass, part of ``ModelConfig``.

Beside it, what a layer then consists of, from the configuration alone.
``from __future__ import annotations`` is absent on purpose: the command line reads the annotations at run time.
"""

from dataclasses import dataclass
from typing import Literal

from elas_lightning.nn.checks import check_choice, check_int, check_not_negative, check_positive, is_number, refuse

WeightMethod = Literal["plain", "sltrain", "relora", "sr_ste", "s_ste", "transposable", "asp", "oats"]
WeightLayers = Literal["all", "ffn"]
OatsPattern = Literal["unstructured", "2:4"]
Part = Literal["attention", "ffn"]

COMPOSED = ("sltrain", "relora")
SPARSE_24 = ("sr_ste", "s_ste", "transposable", "asp")


@dataclass(frozen=True)
class WeightsConfig:
    """What becomes of the weights of attention and FFN, and what it needs to know.

    Fields that begin with a method's name belong to that method and mean nothing to the others.

    Attributes:
        method: ``plain``: full-rank matrices, or factors where a rank is set. ``sltrain`` (arXiv 2406.02214): factors
            of the layer's rank plus a sparse matrix of fixed random support. ``relora`` (arXiv 2307.05695): a
            full-rank matrix that learns through factors of the layer's rank, merged at every restart of the schedule.
            ``sr_ste`` (arXiv 2102.04010): 2:4 by magnitude, chosen anew as training goes, dropped weights decay.
            ``s_ste`` (arXiv 2409.09099): 2:4 by a continuous soft threshold. ``transposable`` (arXiv 2404.01847):
            2:4 along rows and columns both, dropped weights decay, a dense end. ``asp`` (arXiv 2104.08378): dense,
            then pruned to 2:4 once and trained on. ``oats`` (arXiv 2409.13652): trained dense, then each matrix
            becomes sparse plus low rank after the last step.
        layers: Which of them a 2:4 method makes sparse: ``all`` linear layers, or those of the ``ffn``. A layer of
            low rank becomes sparse in both factors. What is left over beyond the last whole group of four stays dense.
        alpha: Of ``sltrain`` and ``relora``: the product of the factors counts ``alpha / rank`` times.
        decay: Of ``sr_ste`` and ``transposable``: λ, the share of each dropped weight that is added to its gradient.
        mask_every: Of the same two: optimizer steps from one choice of the kept weights to the next.
        dense_end: Of the same two: the share of the run, at its end, that is dense.
        sltrain_density: Share of a matrix's entries that the sparse part has.
        relora_full_rank_cycles: Restarts before which the full-rank matrix learns itself, in place of its factors.
        asp_prune_at: Share of the run that is dense, before the weights are pruned.
        oats_compression: Share of each matrix's entries that is saved. With the pattern ``2:4`` it follows from
            ``oats_rank_ratio`` and this field means nothing.
        oats_rank_ratio: Share of what is left that goes to the low-rank part.
        oats_pattern: Of the sparse part: ``unstructured`` (as many entries in every row) or ``2:4``.
        oats_iterations: Rounds of low-rank approximation and thresholding.
    """

    method: WeightMethod = "plain"
    layers: WeightLayers = "all"
    alpha: float = 32.0
    decay: float = 2e-4
    mask_every: int = 1
    dense_end: float = 0.0
    sltrain_density: float = 0.03
    relora_full_rank_cycles: int = 1
    asp_prune_at: float = 0.5
    oats_compression: float = 0.5
    oats_rank_ratio: float = 0.25
    oats_pattern: OatsPattern = "unstructured"
    oats_iterations: int = 80

    def __post_init__(self) -> None:
        check_choice("weights.method", self.method, WeightMethod)
        check_choice("weights.layers", self.layers, WeightLayers)
        check_choice("weights.oats_pattern", self.oats_pattern, OatsPattern)
        check_positive("weights.alpha", self.alpha)
        for key in ("mask_every", "oats_iterations"):
            check_int(f"weights.{key}", getattr(self, key), 1)
        check_int("weights.relora_full_rank_cycles", self.relora_full_rank_cycles, 0)
        check_not_negative("weights.decay", self.decay)
        for key in ("dense_end", "oats_rank_ratio"):
            share = getattr(self, key)
            if not is_number(share) or not 0 <= share < 1:
                raise refuse(f"weights.{key}", share, "give a share in [0, 1)")
        for key in ("sltrain_density", "asp_prune_at", "oats_compression"):
            share = getattr(self, key)
            if not is_number(share) or not 0 < share < 1:
                raise refuse(f"weights.{key}", share, "give a share between 0 and 1")
        if self.dense_end and self.method not in ("sr_ste", "transposable"):
            allowed = f"weights.method {self.method} has no dense end: choose sr_ste or transposable, or 0"
            raise refuse("weights.dense_end", self.dense_end, allowed)
        if self.oats_pattern == "2:4" and self.oats_rank_ratio >= 0.5:
            allowed = "beside a 2:4 part it must be below 0.5, or nothing is saved"
            raise refuse("weights.oats_rank_ratio", self.oats_rank_ratio, allowed)

    def reaches(self, part: str) -> bool:
        """Whether the method acts on the layers of a part, ``attention`` or ``ffn``."""
        return self.method not in SPARSE_24 or self.layers == "all" or part == "ffn"


@dataclass(frozen=True)
class LayerEntries:
    """What one linear layer consists of; all are counts of numbers, without indices and masks.

    Attributes:
        trained: What the optimizer updates (ReLoRA: after its full-rank cycles).
        stored: What training keeps as weights, trained or frozen.
        deployed: What is left to store after training: non-zero weights, merged where they merge.
        multiply_adds: Of one token's forward pass in training; 2:4 products count as dense ones.
        composition: Multiply-adds that make the matrix out of its parts, once a micro-batch whatever its tokens.
    """

    trained: int
    stored: int
    deployed: int
    multiply_adds: int
    composition: int = 0


def sltrain_entries(weights: WeightsConfig, d_in: int, d_out: int) -> int:
    """Entries of SLTrain's sparse part."""
    return int(weights.sltrain_density * d_in * d_out)


def kept_24(rows: int, columns: int, both_ways: bool = False) -> int:
    """Entries that a 2:4 matrix keeps: two of each group of four in a row; what is left of a row stays.

    Args:
        rows: Of the matrix.
        columns: Of the matrix.
        both_ways: Whether only whole 4 × 4 blocks are sparse, as transposable masks are.
    """
    in_groups = (rows // 4 * 4 if both_ways else rows) * (columns // 4 * 4)
    return rows * columns - in_groups // 2


def oats_shape(weights: WeightsConfig, d_in: int, d_out: int) -> tuple[int, int]:
    """How OATS divides what is left of a matrix (arXiv 2409.13652).

    Returns:
        Rank of the low-rank part, and entries of the sparse part in each row.
    """
    kept = 1 - weights.oats_compression
    row = int((1 - weights.oats_rank_ratio) * kept * d_in)
    if weights.oats_pattern == "2:4":
        kept, row = 0.5 / (1 - weights.oats_rank_ratio), kept_24(1, d_in)
    return int(weights.oats_rank_ratio * kept * d_in * d_out / (d_in + d_out)), row


def layer_entries(weights: WeightsConfig, part: Part, d_in: int, d_out: int, rank: int | None) -> LayerEntries:
    """Count what one linear layer consists of.

    Args:
        weights: The method.
        part: Where the layer stands.
        d_in: Its input features.
        d_out: Its output features.
        rank: Its rank, None for full rank.
    """
    full = d_in * d_out
    factors = rank * (d_in + d_out) if rank is not None else 0
    plain = full if rank is None else factors
    match weights.method:
        case "sltrain":
            own = factors + sltrain_entries(weights, d_in, d_out)
            return LayerEntries(own, own, own, full, composition=full * (rank or 0))
        case "relora":
            return LayerEntries(factors, full + factors, full, full, composition=full * (rank or 0))
        case "oats":
            low, row = oats_shape(weights, d_in, d_out)
            return LayerEntries(full, full, low * (d_in + d_out) + row * d_out, full)
        case method:
            deployed = plain
            if method in SPARSE_24 and weights.reaches(part) and not weights.dense_end:
                shapes = [(d_out, d_in)] if rank is None else [(rank, d_in), (d_out, rank)]
                deployed = sum(kept_24(*shape, both_ways=method == "transposable") for shape in shapes)
            return LayerEntries(plain, plain, deployed, plain)
