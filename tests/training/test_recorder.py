"""The curve and telemetry files of a run."""

import csv
from pathlib import Path

import pytest

from elas_lightning.runner import RunRequest, run
from elas_lightning.training.recorder import CURVE_FIELDS, TELEMETRY_FIELDS, _keep_rows_until


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_curve_has_a_row_per_step_and_per_validation(overlay: Path, tmp_path: Path) -> None:
    result = run(RunRequest(tmp_path / "run", [overlay]))
    rows = _rows(tmp_path / "run/curve.csv")
    assert tuple(rows[0]) == CURVE_FIELDS
    assert [int(r["step"]) for r in rows if r["train_loss"]] == list(range(1, 13))
    assert [int(r["step"]) for r in rows if r["val_loss"]] == [5, 10, 12]
    assert float(rows[-1]["val_loss"]) == result.metrics["val_loss"]
    assert int(rows[-1]["tokens"]) == result.metrics["tokens"]
    assert 12 * 3 * 15 <= result.metrics["tokens"] <= 12 * 3 * 16
    seconds = [float(r["seconds"]) for r in rows]
    assert seconds == sorted(seconds)
    assert result.metrics["tokens_per_second"] == pytest.approx(
        result.metrics["tokens"] / result.metrics["seconds"]
    )


def test_sparser_logging_loses_no_tokens(overlay: Path, tmp_path: Path) -> None:
    often = run(RunRequest(tmp_path / "often", [overlay]))
    seldom = run(RunRequest(tmp_path / "seldom", [overlay], {"trainer.log_every_n_steps": 7}))
    assert seldom.metrics["tokens"] == often.metrics["tokens"]
    assert len(_rows(tmp_path / "seldom/curve.csv")) < len(_rows(tmp_path / "often/curve.csv"))


def test_telemetry_has_each_layer_at_each_validation(overlay: Path, tmp_path: Path) -> None:
    run(RunRequest(tmp_path / "run", [overlay]))
    rows = _rows(tmp_path / "run/telemetry.csv")
    assert tuple(rows[0]) == TELEMETRY_FIELDS
    assert {(int(r["step"]), int(r["layer"])) for r in rows} == {(s, n) for s in (5, 10, 12) for n in (0, 1)}
    assert all(0 < float(r["natural_zeros"]) < 1 and 0 <= float(r["dropped_energy"]) < 1 for r in rows)


def test_rows_past_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,tokens\n1,10\n2,20\n3,30\n")
    _keep_rows_until(path, ("step", "tokens"), 2)
    assert path.read_text().split() == ["step,tokens", "1,10", "2,20"]


def test_a_fresh_start_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,tokens\n1,10\n")
    _keep_rows_until(path, ("step", "tokens"), 0)
    assert path.read_text().split() == ["step,tokens"]
