"""The `lightning` command: written only where there is none, and ours only for `run model`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fitting import Forked, elas

from elas_lightning import lightning_command


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bin folder whose interpreter is this one; no link, which would look for its packages beside itself."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def test_install_writes_an_executable_that_runs_our_code(environment: Path) -> None:
    lightning_command.install()
    script = environment / "lightning"
    assert os.access(script, os.X_OK)
    found = subprocess.run([script, "open", "app"], capture_output=True, text=True)
    assert found.returncode == 2
    assert "lightning run model" in found.stderr


def test_install_leaves_another_packages_command_alone(environment: Path) -> None:
    (environment / "lightning").write_text("somebody else's")
    lightning_command.install()
    assert (environment / "lightning").read_text() == "somebody else's"
    assert [p.name for p in environment.iterdir() if p.name.startswith(".lightning")] == []


def test_install_twice_is_install_once(environment: Path) -> None:
    lightning_command.install()
    first = (environment / "lightning").stat().st_ino
    lightning_command.install()
    assert (environment / "lightning").stat().st_ino == first


@pytest.mark.parametrize("door", [lightning_command.main, lightning_command.lightning])
def test_run_model_is_elas_fit(door: object, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("elas_lightning.cli.main", lambda arguments: seen.append(arguments) or 0)
    assert door(["run", "model", "--config", "a.yaml"]) == 0  # type: ignore[operator]
    assert seen == [["fit", "--config", "a.yaml"]]


def test_a_script_goes_to_fabric(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import os; print('accelerator', os.environ['LT_ACCELERATOR'])")
    # in a process of its own, whose environment Fabric changes
    code = Forked(elas, ["run", "model", str(script), "--accelerator=cpu"], tmp_path, "errors").end()
    assert "accelerator cpu" in (tmp_path / "log").read_text(), (code, (tmp_path / "errors").read_text())


def test_other_words_go_to_the_sdk_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Command:
        @staticmethod
        def load() -> object:
            return lambda: 7

    monkeypatch.setattr(lightning_command, "entry_points", lambda **kwargs: [Command])
    assert lightning_command.lightning(["login"]) == 7


def test_other_words_without_the_sdk_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_command, "entry_points", lambda **kwargs: [])
    assert lightning_command.lightning(["login"]) == 2
    assert "lightning-sdk" in capsys.readouterr().err
