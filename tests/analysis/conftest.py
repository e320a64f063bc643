"""Sweeps on disk for the tests of the analysis."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import rank_sweep


@pytest.fixture
def rank_ablation(tmp_path: Path) -> Path:
    """Four ranks by two methods by three seeds, all complete."""
    return rank_sweep(tmp_path / "rank_ablation")
