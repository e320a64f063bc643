"""``elas eval`` as a person types it."""

import json
import math
from pathlib import Path

import pytest

from elas_lightning.cli import main
from elas_lightning.configuration import ElasCLI


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "a[b].txt"  # no markup of the terminal
    path.write_text("the old stone wall runs past every small lane " * 20)
    return path


def test_text_with_and_without_the_sparsity_goes_to_screen_and_file(
    run: ElasCLI, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found" / "eval.json"
    assert main(["eval", str(run.directory), "--text", str(prose), "--dense", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "step 12; windows of 16 tokens" in shown
    assert "a[b].txt" in shown
    found = json.loads(out.read_text())
    on, off = found["text"]
    assert (on["sparsity"], off["sparsity"]) == ("2:4 on", "2:4 off")
    assert on["tokens"] == off["tokens"]
    assert on["loss"] != off["loss"]
    assert f"{on['perplexity']:.2f}" in shown
    assert found["environment"]["command"].startswith("elas eval ")
    assert found["environment"]["versions"]["torch"]
    assert found["run"]["seed"] == 0
    # measuring has left nothing switched: a second measurement agrees
    assert main(["eval", str(run.directory), "--text", str(prose), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["text"][0]["loss"] == on["loss"]


def test_a_name_keeps_its_brackets(run: ElasCLI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "[red].txt"
    path.write_text("the old stone wall")
    assert main(["eval", str(run.directory), "--text", str(path)]) == 0
    assert "[red].txt" in capsys.readouterr().out


def test_a_file_that_cannot_be_is_refused_before_anything_is_measured(
    run: ElasCLI, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, message in ((tmp_path, "is a folder: give a file"), (prose / "eval.json", "cannot be written")):
        assert main(["eval", str(run.directory), "--text", str(prose), "--json", str(path)]) == 2
        given = capsys.readouterr()
        assert message in given.err
        assert given.out == ""


def test_a_shorter_stride_gives_more_context_and_another_loss(run: ElasCLI, prose: Path, tmp_path: Path) -> None:
    losses = {}
    for stride in (16, 4):
        out = tmp_path / f"{stride}.json"
        arguments = ["--text", str(prose), "--stride", str(stride), "--json", str(out)]
        assert main(["eval", str(run.directory), *arguments]) == 0
        losses[stride] = json.loads(out.read_text())["text"][0]
    assert losses[16]["tokens"] == losses[4]["tokens"]
    assert not math.isclose(losses[16]["loss"], losses[4]["loss"], rel_tol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to measure: give --text FILE, --tasks NAME, or both"),
        (["--text", "PROSE", "--stride", "17"], "--stride is 17, longer than the window of 16"),
        (["--text", "PROSE", "--stride", "0"], "--stride is 0: give 1 or more"),
        (["--text", "PROSE", "--batch-size", "0"], "--batch-size is 0: give 1 or more"),
        (["--tasks", "arc_easy", "--stride", "4"], "--stride is read with --text only"),
        (["--text", "PROSE", "--device", "gpu9"], "device 'gpu9' cannot be used here"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    run: ElasCLI, prose: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [str(prose) if argument == "PROSE" else argument for argument in arguments]
    assert main(["eval", str(run.directory), *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_dense_is_refused_where_there_is_no_sparsity(
    overlay: Path, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"--trainer.default_root_dir={tmp_path / 'dense'}"
    placement = "--model.config.sparsity.placement=[]"
    assert main(["fit", "--config", str(overlay), own, placement, "--checkpoint.every_n_train_steps=12"]) == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "dense"), "--text", str(prose), "--dense"]) == 2
    assert "this model has none" in capsys.readouterr().err


def test_without_lm_eval_tasks_are_refused(
    run: ElasCLI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("elas_lightning.inference.evaluate.find_spec", lambda name: None)
    assert main(["eval", str(run.directory), "--tasks", "arc_easy"]) == 2
    assert "pip install 'elas-lightning[eval]'" in capsys.readouterr().err
