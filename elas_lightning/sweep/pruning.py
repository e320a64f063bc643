"""Which points are not worth their time."""

from optuna.pruners import BasePruner, MedianPruner, NopPruner

from elas_lightning.sweep.spec import SweepSpec


def build_pruner(spec: SweepSpec) -> BasePruner:
    """The pruner that a sweep's file names."""
    return MedianPruner(n_startup_trials=4) if spec.pruner == "median" else NopPruner()
