"""The benchmark of one FFN: runs with torch and this checkout, says what ran, what could not, and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ffn.py"
SMOKE = ["--shape", "smoke", "--tokens", "24", "--rounds", "2", "--warmup", "0", "--repeat", "1"]


def run(tmp_path: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    record = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPT), *SMOKE, "--device", "cpu", "--json", str(record), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return json.loads(record.read_text())


def test_every_path_is_checked_named_and_timed(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")
    (case,) = run(tmp_path, TRITON_INTERPRET="1")["cases"]
    contenders = {name: row for name, row in case["contenders"].items() if "cusparselt" not in name}
    assert len(contenders) == 11
    assert len(case["contenders"]) == 14
    for name, row in contenders.items():
        assert row["path"], name
        assert row["error"] < 1e-4, name
        for kind in ("forward", "forward_backward"):
            assert case[kind][name]["speed_against low-rank relu2"]["median"] > 0
    kept = {name: row["kept_bytes"] for name, row in contenders.items()}
    assert kept["elas reference recompute"] < kept["elas reference packed"] < kept["elas reference dense"]
    assert kept["elas triton recompute"] == kept["elas reference recompute"]


def test_what_cannot_run_is_absent_with_its_reason(tmp_path: Path) -> None:
    (case,) = run(tmp_path, TRITON_INTERPRET="0")["cases"]
    assert "needs a CUDA device, this is cpu" in case["contenders"]["elas triton dense"]["absent"]
    assert "needs a CUDA device" in case["contenders"]["elas cusparselt packed"]["absent"]
    assert "elas triton dense" not in case["forward"]


def test_refuses_a_single_round() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--rounds", "1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--rounds must be at least 2" in done.stderr
