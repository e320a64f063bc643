"""Sweeps on disk for the tests of the analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic import rank_sweep, write_sweep


@pytest.fixture
def rank_ablation(tmp_path: Path) -> Path:
    """Four ranks by two methods by three seeds, all complete."""
    return rank_sweep(tmp_path / "rank_ablation")


@pytest.fixture
def twinned(tmp_path: Path) -> Path:
    """Four patterns by two activations, complete: "tied" is 0.01 nats above its twin "free", "tied less" as much below
    its twin "dense", which is the one listed first."""
    losses = {"dense": 5.0, "free": 5.02, "tied": 5.03, "tied less": 4.99}
    search = {
        "pattern": {"kind": "choices", "values": list(losses), "label": "pattern"},
        "activation": {"kind": "choices", "values": ["relu2", "swiglu"], "label": "activation"},
    }

    def loss(point: Mapping[str, Any], seed: int) -> float:
        return losses[point["pattern"]] + 0.001 * ((5 * seed + len(point["pattern"] + point["activation"])) % 3)

    plots = [{"kind": "bars", "x": "pattern"}]
    return write_sweep(tmp_path / "twinned", search, plots, loss=loss, twins={"tied": "free", "tied less": "dense"})
