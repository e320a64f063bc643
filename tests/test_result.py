"""A run's result as a file."""

import json
from pathlib import Path

import pytest

from elas_lightning.errors import UserError
from elas_lightning.result import RunResult
from elas_lightning.runner import RunRequest, run


def test_an_unreadable_result_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"run": ')
    with pytest.raises(UserError, match=r"result\.json cannot be read .*delete"):
        RunResult.read(tmp_path)


def test_numbers_that_json_cannot_hold_become_null(overlay: Path, tmp_path: Path) -> None:
    result = run(RunRequest(tmp_path / "run", [overlay], {"trainer.max_steps": 3}))
    result.metrics["val_loss"] = float("inf")
    result.write(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["val_loss"] is None
