"""The other ways to the same commands: ``lightning run model``, ``make``, a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elas_lightning.lightning_command import lightning

ROOT = Path(__file__).resolve().parents[2]


def test_lightning_run_model(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert lightning(["run", "model", "--config", "nowhere.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the overlay nowhere.yaml cannot be read")
    assert error.count("\n") == 1


def test_a_script_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert lightning(["run", "model", "nowhere.py"]) == 2
    assert capsys.readouterr().err == "error: there is no file nowhere.py: give the path of a script\n"


def _make(ready: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``make`` with this environment instead of one of its own."""
    ready.touch()
    own = [f"VENV={sys.prefix}", f"READY={ready}"]
    return subprocess.run(
        ["make", *arguments, *own],
        cwd=ROOT,
        # without what `make test ARGS=...` hands to every make below it
        env={name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "ARGS"}}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("target", ["sweep", "plots", "report", "store"])
def test_make_without_a_sweep(target: str, tmp_path: Path) -> None:
    command = ["make", target, f"VENV={tmp_path / 'made'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not (tmp_path / "made").exists()
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "EXP is missing" in line
    assert "rank_ablation" in line


def test_make_with_an_older_python(tmp_path: Path) -> None:
    older = tmp_path / "python3.10"
    pretends = "import sys; sys.version_info, sys.version = (3, 10, 13), '3.10.13 (main)'"
    older.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{pretends}\n$2"\nexit 99\n')
    older.chmod(0o755)
    command = ["make", "setup", f"VENV={tmp_path / 'made'}", f"PYTHON={older}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not (tmp_path / "made").exists()
    assert done.returncode == 2
    assert done.stderr.startswith("error: this is Python 3.10.13: give 3.11 or newer, e.g. PYTHON=python3.12\n")


def test_make_with_an_unknown_sweep(tmp_path: Path) -> None:
    done = _make(tmp_path / "ready", "sweep", "EXP=gird")
    assert done.returncode == 2
    ours, makes = done.stderr.splitlines()
    assert ours.startswith("error: there is no sweep named 'gird': choose one of")
    assert re.match(r"make(\[\d+\])?: \*\*\*", makes)  # numbered where `make test` runs the tests


def test_a_shell_without_a_gpu(place: Any) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU, on which this is no mistake")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "elas_lightning", "fit", "--config", "run.yaml", "--model.config.backend=triton"]
    before = place.files()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "backend 'triton' cannot run here" in line
    assert place.files() == before
