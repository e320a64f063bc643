"""What an optimizer and its schedule are: one frozen dataclass that refuses what cannot be.

``from __future__ import annotations`` is absent on purpose: the command line reads the annotations at run time.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from elas_lightning.errors import UserError

OptimizerName = Literal["adamw", "loro", "muon", "galore"]
Schedule = Literal["cosine", "cosine_restarts"]
LoroDirection = Literal["adam", "gradient"]
LoroReset = Literal["all", "factors"]

_CHOICES = {"name": OptimizerName, "schedule": Schedule, "loro_direction": LoroDirection, "loro_reset": LoroReset}


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its schedule.

    ``name`` decides what becomes of the matrices of the decoder blocks; embedding, head and norms go by AdamW
    whatever it is. Fields that begin with a name belong to that optimizer and mean nothing to the others.

    Args:
        name: ``adamw`` for all; ``loro`` (ICLR 2025) for the factors of low-rank layers; ``muon`` for every
            matrix of the blocks; ``galore`` (arXiv 2403.03507) for every matrix of the blocks.
        lr: Peak learning rate of embedding, head and norms.
        block_lr_ratio: The matrices of the decoder blocks (attention and FFN, factors or full) learn at
            ``block_lr_ratio * lr``. LORO scales its factors by rank / width, at the paper's sizes a quarter (a
            third at 130M); Muon's updates are as large as AdamW's, GaLore's are scaled by ``galore_scale`` besides.
        schedule: ``cosine``, or ``cosine_restarts``: the same with a short warm-up every ``restart_every`` steps.
        restart_every: Optimizer steps from one restart of the schedule to the next, and from one exact step of
            LORO to the next. A run that is shorter has neither.
        restart_warmup_steps: Steps of linear warm-up after a restart.
        warmup_steps: Optimizer steps of linear warm-up from 0 to ``lr``.
        min_lr_ratio: The cosine ends at ``min_lr_ratio * lr``, which a step behind the last one would have.
        weight_decay: Decoupled weight decay of matrices; norms and embeddings have none.
        betas: Decay of Adam's two moments.
        eps: Adam's denominator term.
        loro_direction: What LORO's exact step takes for the gradients of the factors: ``adam`` (their Adam
            direction, as its released code does) or ``gradient`` (themselves).
        loro_reset: Whose moments are forgotten after an exact step: ``all`` parameters', as in the runs that LORO's
            authors publish, or only the ``factors``'.
        loro_exact_lr_ratio: The exact step's rate is ``loro_exact_lr_ratio * lr``.
        muon_momentum: Decay of Muon's running average of gradients.
        muon_ns_steps: Newton-Schulz iterations that make its update orthogonal.
        galore_rank: Rank of the subspace that GaLore keeps its moments in; below every block matrix's dimensions.
        galore_update_every: Optimizer steps for which a subspace is kept.
        galore_scale: Factor α on the update that comes back from the subspace.
    """

    name: OptimizerName = "adamw"
    lr: float = 1e-3
    block_lr_ratio: float = 1.0
    schedule: Schedule = "cosine"
    restart_every: int = 500
    restart_warmup_steps: int = 5
    warmup_steps: int = 1000
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    loro_direction: LoroDirection = "adam"
    loro_reset: LoroReset = "all"
    loro_exact_lr_ratio: float = 1.0
    muon_momentum: float = 0.95
    muon_ns_steps: int = 5
    galore_rank: int | None = None
    galore_update_every: int = 200
    galore_scale: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for field, choices in _CHOICES.items():
            allowed = get_args(choices)
            self._check(field, getattr(self, field) in allowed, f"be one of {', '.join(allowed)}")
        for field in ("lr", "block_lr_ratio", "eps", "loro_exact_lr_ratio", "galore_scale"):
            value = getattr(self, field)
            self._check(field, math.isfinite(value) and value > 0, "be a finite number above 0")
        self._check("min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "lie in [0, 1]")
        self._check("betas", all(0 <= beta < 1 for beta in self.betas), "lie in [0, 1), both")
        self._check("muon_momentum", 0 <= self.muon_momentum < 1, "lie in [0, 1)")
        for field in ("warmup_steps", "restart_warmup_steps", "weight_decay"):
            self._check(field, 0 <= getattr(self, field) < math.inf, "be 0 or more, and finite")
        for field in ("restart_every", "muon_ns_steps", "galore_update_every"):
            self._check(field, getattr(self, field) >= 1, "be 1 or more")
        if self.schedule == "cosine_restarts":
            within = f"be at most model.optimizer.restart_every, which is {self.restart_every}"
            self._check("restart_warmup_steps", self.restart_warmup_steps <= self.restart_every, within)
        if self.name == "galore":
            rank = self.galore_rank
            self._check("galore_rank", rank is not None and rank >= 1, "be 1 or more, for GaLore's subspace")

    def check_length(self, steps: int) -> None:
        """Refuse a run for which there is no schedule.

        Args:
            steps: Of the run; below 1 where nobody has said.

        Raises:
            UserError: The run has no length, or is no longer than its warm-up.
        """
        if steps < 1:
            raise UserError(
                "trainer.max_steps is not set: the schedule needs the length of the run; stack a size overlay "
                "(e.g. --config experiments/sizes/tiny.yaml) or give --trainer.max_steps"
            )
        if self.warmup_steps >= steps:
            raise UserError(
                f"model.optimizer.warmup_steps is {self.warmup_steps} but the run has {steps} steps "
                "(trainer.max_steps): shorten the warm-up or lengthen the run"
            )

    def _check(self, field: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"model.optimizer.{field} is {getattr(self, field)}: it must {allowed}")
