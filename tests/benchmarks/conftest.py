"""The benchmark scripts as modules of this process, where a process of its own would cost seconds a test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script's ``main`` with a command line; its module can be imported by the test."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        importlib.import_module(name).main()

    return run
