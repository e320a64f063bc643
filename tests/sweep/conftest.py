"""A project folder of its own: one size, two methods, the small corpus, and sweeps that train for seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from making import Started

from elas_lightning.runner import RunRequest, run
from elas_lightning.sweep.isolated import IsolatedRun
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.run import Request

GRID = {
    "question": "Does the rank matter?",
    "base": ["sizes/{size}"],
    "machines": {"cpu": {"size": "small", "data": "inside"}, "gpu": {"size": "small", "data": "inside"}},
    "search": {
        "method": {"overlays": {"dense": "methods/dense", "ELAS": "methods/elas"}},
        "rank": {
            "keys": ["model.config.attention_rank", "model.config.ffn_rank"],
            "relative_to": "model.config.hidden_size",
            "choices": [0.125, 0.25],
        },
    },
    "seeds": [0, 1],
    "plots": [{"kind": "metric_by", "x": "rank", "series": "method"}],
}


@pytest.fixture
def project(overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``experiments/`` and ``sweeps/grid.yaml``: 2 methods, 2 ranks, 2 seeds."""
    root = tmp_path / "project"
    for folder in ("experiments/sizes", "experiments/methods", "sweeps"):
        (root / folder).mkdir(parents=True)
    (root / "experiments/sizes/small.yaml").write_text(overlay.read_text())
    for method, placement in (("dense", []), ("elas", ["ffn_hidden"])):
        content = {"model": {"config": {"sparsity": {"placement": placement}}}}
        (root / f"experiments/methods/{method}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (root / "sweeps/grid.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def planned(project: Path) -> Callable[..., Plan]:
    """Plans ``sweeps/grid.yaml`` with some of its fields changed."""

    def plan(**changes: Any) -> Plan:
        (project / "sweeps/mine.yaml").write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
        return Request("mine").plan()

    return plan


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    names = Started()
    names.make_with(lambda request: None)
    original = IsolatedRun.__init__

    def counted(self: IsolatedRun, request: RunRequest) -> None:
        names.append(request.directory.name)
        original(self, request, names.choose(request) or run)

    monkeypatch.setattr(IsolatedRun, "__init__", counted)
    return names
