"""Optuna studies around :func:`elas_lightning.runner.run`."""
