"""Optimizers and their schedule: AdamW, and LORO, Muon or GaLore for the matrices of the blocks."""

from elas_lightning.training.optimizers.build import build_optimizer
from elas_lightning.training.optimizers.config import OptimizerConfig
from elas_lightning.training.optimizers.moments import reset_moments
from elas_lightning.training.optimizers.schedule import learning_rate_factor
from elas_lightning.training.optimizers.state import optimizer_state_entries

__all__ = ["OptimizerConfig", "build_optimizer", "learning_rate_factor", "optimizer_state_entries", "reset_moments"]
