"""The FFN's second product on the sparse tensor cores: hidden features times ``down`` by cuSPARSELt.

Two ways lead to the packed operand. ``cusparselt``: the kernel that makes the hidden features writes it
(``ops/kernels/hardware.py``), so that they pass through memory once, in 9 / 16 of their bytes.
``cusparselt_compress``: the kernel writes them dense and cuSPARSELt compresses them, by the library's own
knowledge of its form. The first relies on a layout that NVIDIA does not promise, so for each problem it is held
against the second on the device before its first use; if their products differ in a single bit, it is refused.

Shape suffixes: t tokens of a chunk, P the same in whole blocks, R rank, F hidden features, O output rank.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops.hardware_layout import FEATURES, packed_shape, round_up
from elas_lightning.ops.measured import device_name
from elas_lightning.ops.steps import TritonSteps

# What cuSPARSELt asks of the sizes of 16-bit operands, where the layout is its own affair.
_LIBRARY_MULTIPLE = 16


@dataclass(frozen=True)
class Problem:
    """A product whose best algorithm is a fact; the version, since the numbers of algorithms change with it."""

    backend: str
    rows: int
    features: int
    out: int
    down_by_rows: bool
    dtype: torch.dtype
    device: torch.device
    version: int | None


@dataclass(frozen=True)
class Plan:
    """What ``torch._cslt_sparse_mm`` takes to name an algorithm."""

    alg_id: int
    split_k: int
    split_k_mode: int


class PlanCache:
    """The plans of the problems met last; the one that was used longest ago makes room for a new one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.plans: OrderedDict[Problem, Plan] = OrderedDict()

    def get(self, problem: Problem, find: Callable[[], Plan]) -> Plan:
        """The plan of a problem, found by ``find`` the first time; an error of ``find`` leaves no plan."""
        if problem not in self.plans:
            self.plans[problem] = find()
            while len(self.plans) > self.limit:
                self.plans.popitem(last=False)
        self.plans.move_to_end(problem)
        return self.plans[problem]


_DEFAULT = Plan(alg_id=0, split_k=1, split_k_mode=-1)
# An operator seen by torch.compile takes tensors and numbers, so its plans cannot be handed to it.
PLANS = PlanCache(limit=256)


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros below and to the right, up to a size; the matrix itself where it has that size."""
    below, right = rows - matrix.shape[0], columns - matrix.shape[1]
    return F.pad(matrix, (0, right, 0, below)) if below or right else matrix


def _operand(down_FO: Tensor, features: int) -> Tensor:
    """``down``, contiguous or the transpose of something that is, padded to what cuSPARSELt takes."""
    out = round_up(down_FO.shape[1], _LIBRARY_MULTIPLE)
    if down_FO.is_contiguous():
        return _pad(down_FO, features, out)
    return _pad(down_FO.t(), out, features).t()


def _multiply(packed: Tensor, down: Tensor, plan: Plan) -> Tensor:
    return torch._cslt_sparse_mm(packed, down, alg_id=plan.alg_id, split_k=plan.split_k, split_k_mode=plan.split_k_mode)


def _search(packed: Tensor, down: Tensor) -> Plan:
    """Let cuSPARSELt time its algorithms on these operands."""
    alg_id, split_k, split_k_mode, _ = torch._C._cusparselt.mm_search(  # type: ignore[attr-defined]
        packed, down, None, None, None, False
    )
    return Plan(alg_id, split_k, split_k_mode)


class CompressSteps(TritonSteps):
    """``cusparselt_compress``: dense hidden features, compressed by the library. Nothing of it can be kept packed."""

    backend = "cusparselt_compress"

    def most_tokens(self, up_FR: Tensor, down_FO: Tensor, sparse: bool, backward: bool) -> int:
        return self.within_workspace(up_FR) if sparse else super().most_tokens(up_FR, down_FO, sparse, backward)

    def own_down(self, down_FO: Tensor) -> Tensor:
        return down_FO if down_FO.t().is_contiguous() else down_FO.contiguous()

    def forward(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
        if not sparse:
            return super().forward(z_tR, up_FR, down_FO.contiguous(), sparse)
        from elas_lightning.ops.kernels import ffn

        rows = round_up(z_tR.shape[0], _LIBRARY_MULTIPLE)
        features = round_up(up_FR.shape[0], _LIBRARY_MULTIPLE)
        rank = z_tR.shape[1]
        hidden_PF = ffn.hidden(_pad(z_tR, rows, rank), _pad(up_FR, features, rank), True)
        return self._product(torch._cslt_compress(hidden_PF), z_tR, features, down_FO)

    def _product(self, packed: Tensor, z_tR: Tensor, features: int, down_FO: Tensor) -> Tensor:
        """Packed hidden features times ``down``, without what was padded."""
        down = _operand(down_FO, features)
        problem = Problem(
            self.backend,
            packed.shape[0],
            features,
            down.shape[1],
            down.is_contiguous(),
            packed.dtype,
            packed.device,
            torch.backends.cusparselt.version(),
        )
        plan = PLANS.get(problem, lambda: self._find(packed, down))
        return _multiply(packed, down, plan)[: z_tR.shape[0], : down_FO.shape[1]]

    def _find(self, packed: Tensor, down: Tensor) -> Plan:
        return _search(packed, down)


class DirectSteps(CompressSteps):
    """``cusparselt``: the kernel writes the packed form itself, which can be kept for backward as it is."""

    backend = "cusparselt"

    def empty_kept(self, like: Tensor, tokens: int, features: int) -> tuple[Tensor, Tensor]:
        # values and metadata are one buffer for each chunk; a chunk is a whole number of blocks
        return like.new_empty(packed_shape(tokens, features)), like.new_empty((0, 0), dtype=torch.uint8)

    def forward(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
        if not sparse:
            return super().forward(z_tR, up_FR, down_FO, sparse)
        packed, meta = self.empty_kept(z_tR, z_tR.shape[0], up_FR.shape[0])
        return self.forward_keeping(z_tR, up_FR, down_FO, packed, meta)

    def forward_keeping(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, values: Tensor, meta: Tensor) -> Tensor:
        from elas_lightning.ops.kernels.hardware import hidden_hardware

        hidden_hardware(z_tR, up_FR, values)
        return self._product(values, z_tR, round_up(up_FR.shape[0], FEATURES), down_FO)

    def unpack(self, values: Tensor, meta: Tensor, tokens: int, features: int) -> Tensor:
        from elas_lightning.ops.kernels.hardware import unpack_hardware

        return unpack_hardware(values, tokens, features)

    def _find(self, packed: Tensor, down: Tensor) -> Plan:
        plan = _search(packed, down)
        check_layout(packed.shape[0], down, plan)
        return plan


def check_layout(rows: int, down: Tensor, plan: Plan) -> None:
    """Hold the form that our kernel writes against the library's own, by their products with ``down``.

    Small integers make the hidden features and their sums exact, whatever computes them in whatever order, so that
    both operands hold the same numbers, ties and zeros among them, and the products must be equal in every bit.

    Args:
        rows: Tokens in whole blocks.
        down: The operand of the product, ``(F, O)``, F in whole blocks; its memory order counts, not its entries.
        plan: The algorithm that was found for it.

    Raises:
        UserError: They are not, or the found algorithm computes something else.
    """
    from elas_lightning.ops.kernels import ffn
    from elas_lightning.ops.kernels.hardware import hidden_hardware

    numbers = torch.Generator(down.device).manual_seed(0)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        drawn = torch.randint(low, high + 1, shape, generator=numbers, device=down.device)
        return drawn.to(down.dtype)

    z, up = integers(-2, 2, rows, 32), integers(-1, 1, down.shape[0], 32) / 16
    weight = torch.empty_like(down).copy_(integers(-2, 2, *down.shape))
    packed = z.new_empty(packed_shape(rows, down.shape[0]))
    hidden_hardware(z, up, packed)
    compressed = torch._cslt_compress(ffn.hidden(z, up, True))
    found = None
    if packed.numel() != compressed.numel():
        found = f"{packed.numel()} words, it has {compressed.numel()}"
    else:
        # bits are compared under the default algorithm: others may split the sum and round its parts
        mine, theirs = (_multiply(operand, weight, _DEFAULT) for operand in (packed, compressed))
        searched = _multiply(packed, weight, plan).float()
        if not torch.equal(mine, theirs):
            found = "their products differ"
        elif not (searched - theirs.float()).norm() <= 1e-2 * theirs.float().norm():
            found = f"only under {plan}"
    if found is not None:
        raise UserError(
            f"backend 'cusparselt' cannot run here: cuSPARSELt {torch.backends.cusparselt.version()} on "
            f"{device_name(down.device)} packs {rows} x {down.shape[0]} {down.dtype} otherwise than our kernel "
            f"({found}); choose cusparselt_compress or triton"
        )
