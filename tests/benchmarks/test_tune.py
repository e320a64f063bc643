"""`elas bench --tune` measures for real, says what cannot run, and leaves a record that ``auto`` reads."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from elas_lightning.cli import main
from elas_lightning.ops import backend, measured, resolve_backend
from elas_lightning.ops.measured import Case, device_name

SMOKE = ["--shape", "smoke", "--tokens", "24", "--rounds", "2"]


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command, in this process; its records lie in ``tmp_path``."""
    monkeypatch.setenv("ELAS_MEASUREMENTS", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(sys, "argv", ["elas"])
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> int:
        measured.measurements.cache_clear()
        backend._fastest.cache_clear()
        return main(["bench", "--tune", *SMOKE, "--device", "cpu", *arguments])

    yield run
    measured.measurements.cache_clear()
    backend._fastest.cache_clear()


def test_measures_every_path_and_auto_reads_it(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune() == 0
    said = capsys.readouterr().out
    assert "left out: backend 'cusparselt' cannot run here: it needs a CUDA device, this is cpu" in said
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert record["device"] == device_name(torch.device("cpu"))
    assert record["command"].startswith("elas bench --tune --shape smoke")
    assert len(record["cases"]) == 4
    for case in record["cases"]:
        storages = ("dense", "packed", "recompute") if case["sparsity"] else ("dense", "recompute")
        assert set(case["seconds"]) == {f"reference {storage}" for storage in storages}
        assert all(seconds > 0 for seconds in case["seconds"].values())
    measured.measurements.cache_clear()
    choice = resolve_backend("auto", torch.device("cpu"), Case(16, 192, 30, "float32", "2:4", "forward"))
    assert "fastest for r 16, d_ff 192, 24 tokens, float32, 2:4, forward" in choice.why
    assert str(path) in choice.why


def test_a_path_without_room_costs_no_other_its_figure(
    script: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("tune")
    make = module.make_step

    def short_of_memory(case: Case, path: str, device: torch.device) -> Callable[[], torch.Tensor]:
        if path == "reference dense":
            raise torch.OutOfMemoryError
        return make(case, path, device)  # type: ignore[no-any-return]

    monkeypatch.setattr(module, "make_step", short_of_memory)
    case = Case(16, 64, 24, "float32", "2:4", "training")
    found = module.measure_case(case, ["reference"], torch.device("cpu"), argparse.Namespace(rounds=2))
    assert set(found["seconds"]) == {"reference packed", "reference recompute"}
    said = capsys.readouterr().out
    assert "reference dense                  out of memory" in said
    assert "x reference dense" not in said


def test_a_case_measured_again_takes_its_own_place(tune: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    for tokens in ("24", "48", "24"):
        assert tune("--tokens", tokens, "--direction", "forward", "--out", str(out)) == 0
    cases = json.loads(out.read_text())["cases"]
    found = sorted((case["tokens"], str(case["sparsity"])) for case in cases)
    assert found == [(24, "2:4"), (24, "None"), (48, "2:4"), (48, "None")]


def test_another_device_s_file_is_not_written_over(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "h200.json"
    out.write_text('{"device": "NVIDIA H200", "cases": []}')
    assert tune("--out", str(out)) == 2
    assert "holds measurements of NVIDIA H200" in capsys.readouterr().err
    assert json.loads(out.read_text())["cases"] == []
