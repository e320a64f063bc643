"""The training step whose bytes are asked for: how much it reads, in what precision, on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from elas_lightning.errors import UserError
from elas_lightning.nn.config import Checkpointing

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class TrainingStep:
    """One micro-batch through forward and backward.

    Attributes:
        batch: Sequences.
        sequence: Tokens of each.
        precision: Lightning's name. ``32-true``: all in float32. ``bf16-mixed``, ``16-mixed``: parameters and
            residual stream in float32, products in 16 bits under autocast. ``bf16-true``, ``16-true``: parameters
            and all else in 16 bits.
        device: What runs it. The rules differ in two places: RMSNorm is one kernel on a GPU, which keeps its
            input alone, while a CPU keeps the normalised copy, too; and the size of a chunk of logits.
        checkpointing: ``none``; ``block``: of each decoder block only the input is kept, and backward computes
            the block again; ``bottleneck``: CoLA-M (arXiv 2502.10940).
        sparse: Whether the placed 2:4 sites are on, as they are after the dense warm-up.
    """

    batch: int
    sequence: int
    precision: Precision = "bf16-mixed"
    device: Device = "cuda"
    checkpointing: Checkpointing = "none"
    sparse: bool = True

    def __post_init__(self) -> None:
        for key in ("batch", "sequence"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"account: {key} = {value!r} is not possible: give an integer of at least 1")
        choices: dict[str, Any] = {"precision": Precision, "device": Device, "checkpointing": Checkpointing}
        for key, literal in choices.items():
            if getattr(self, key) not in get_args(literal):
                allowed = f"choose one of {', '.join(get_args(literal))}"
                raise UserError(f"account: {key} = {getattr(self, key)!r} is not possible: {allowed}")

    @property
    def tokens(self) -> int:
        """Positions of the micro-batch."""
        return self.batch * self.sequence

    @property
    def mixed(self) -> bool:
        """Whether autocast makes 16-bit copies of what the products read."""
        return self.precision.endswith("-mixed")

    @property
    def parameter_bytes(self) -> int:
        """Of one entry of a parameter, its gradient, its optimizer state, and of the residual stream."""
        return 4 if self.mixed or self.precision == "32-true" else 2

    @property
    def product_bytes(self) -> int:
        """Of one entry of what a matrix product reads and writes."""
        return 4 if self.precision == "32-true" else 2
