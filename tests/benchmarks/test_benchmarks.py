"""The benchmarks run with torch and this checkout, say what ran, what could not, and why; their records are drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elas_lightning.cli import main

FOLDER = Path(__file__).parents[2] / "benchmarks"
SIZES = {
    "ffn": ["--tokens", "24"],
    "train_step": ["--batch", "2", "--sequence", "16", "--vocabulary", "50", "--only", "ReLU²", "ELAS"],
    "prefill": ["--batch", "2", "--sequence", "16", "--vocabulary", "50"],
}
TWIN = "low-rank ReLU²"


def run(name: str, record: Path, **environment: str) -> dict[str, Any]:
    options = ["--shape", "smoke", "--rounds", "2", "--device", "cpu", "--json", str(record), *SIZES[name]]
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    record_: dict[str, Any] = json.loads(record.read_text())
    return record_


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One record of each benchmark, of this CPU, without Triton's interpreter."""
    folder = tmp_path_factory.mktemp("records")
    for name in SIZES:
        run(name, folder / f"{name}.json", TRITON_INTERPRET="0")
    return folder


def read(records: Path, name: str) -> dict[str, Any]:
    (case,) = json.loads((records / f"{name}.json").read_text())["cases"]
    return case  # type: ignore[no-any-return]


def test_every_kernel_path_is_checked_named_and_timed(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")
    (case,) = run("ffn", tmp_path / "record.json", TRITON_INTERPRET="1")["cases"]
    rows = case["contenders"]
    ran = {name for name, row in rows.items() if "absent" not in row}
    assert {
        f"ELAS, {b}, {s}" for b in ("reference", "triton") for s in ("dense", "packed", "recompute")
    } <= ran
    for name in ran:
        assert rows[name]["path"], name
        assert rows[name]["error"] < 1e-4, name
        assert {m["kind"] for m in case["measured"] if m["contender"] == name} == {
            "forward",
            "forward_backward",
        }
    kept = {name: rows[name]["kept_bytes"] for name in ran}
    assert (
        kept["ELAS, reference, recompute"] < kept["ELAS, reference, packed"] < kept["ELAS, reference, dense"]
    )
    assert kept["ELAS, triton, recompute"] == kept["ELAS, reference, recompute"]


@pytest.mark.parametrize("name", SIZES)
def test_what_cannot_run_is_absent_with_its_reason(records: Path, name: str) -> None:
    rows = read(records, name)["contenders"]
    assert "needs a CUDA device, this is cpu" in rows["ELAS, triton, dense"]["absent"]
    assert "absent" not in rows["ELAS, reference, dense"]


def test_the_twin_is_its_own_measure(records: Path) -> None:
    rows = {m["contender"]: m for m in read(records, "ffn")["measured"] if m["kind"] == "forward"}
    assert rows[TWIN]["speed_against"][TWIN] == {"median": 1.0, "p20": 1.0, "p80": 1.0}
    assert read(records, "train_step")["contenders"][TWIN]["speed_against"][TWIN]["median"] == 1.0


def test_the_memory_of_a_step_is_that_of_its_tensors(records: Path) -> None:
    row = read(records, "train_step")["contenders"][TWIN]
    assert row["memory"]["weights"] == row["memory"]["gradients"] == 4 * row["parameters"]
    assert row["memory"]["optimizer"] == pytest.approx(8 * row["parameters"], rel=0.01)
    assert row["memory"]["activations"] > 0
    assert row["memory"]["peak"] is None


def test_the_report_draws_the_records(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--report", str(records), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for title in ("Feed-forward network, forward and backward", "Whole training step", "Prefill"):
        assert f"<h2>{title}</h2>" in page
    assert "times its speed" in page
    assert "needs a CUDA device" in page
    assert "Microseconds" not in page  # absolute times are a GPU's alone
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 5


def test_a_folder_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--report", str(tmp_path)]) == 2
    assert "there is no benchmark record in" in capsys.readouterr().err


def test_a_record_of_another_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.json").write_text('{"benchmark": "ffn", "command": "python ffn.py", "cases": [{}]}')
    assert main(["bench", "--report", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is not of this version" in capsys.readouterr().err


def test_refuses_a_single_round() -> None:
    command = [sys.executable, str(FOLDER / "ffn.py"), "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--rounds must be at least 2" in done.stderr
