"""``elas data`` as a user types it."""

import shutil

import numpy as np
import pytest
from small_corpus import write_shard

from elas_lightning.cli import main
from elas_lightning.data import inspection


@pytest.fixture
def source(corpus, tokenizer_file, tmp_path, monkeypatch):
    monkeypatch.setenv("ELAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    return ["--source", "local", "--path", str(corpus), "--tokenizer", str(tokenizer_file), "--set", "data.lanes=4"]


def test_prepare_then_train_from_the_shards(source, tmp_path, overlay, capsys):
    out = tmp_path / "my [v2] tokens"
    # how many lanes a run will have is no matter here
    arguments = ["data", "prepare", *source, "--set", "data.lanes=16", "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{out}: 4 training and 2 validation shards, 122 documents, " in said
    assert f"--config experiments/data/tokens.yaml '--data.path={out}'" in said
    assert main(["data", "prepare", *source, "--out", str(out), "--workers", "1"]) == 0
    run = tmp_path / "run"
    tokens = ["--data.source=tokens", f"--data.path={out}", "--data.tokenizer=auto"]
    arguments = ["fit", "--config", str(overlay), *tokens, f"--trainer.default_root_dir={run}"]
    assert main(arguments) == 0
    assert main(["data", "inspect", "--source", "tokens", "--path", str(out), "--set", "data.lanes=4", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "every file was read to its end and is whole" in said
    assert "read as token shards" in said
    assert "92 documents" in said
    path = out / "c4-train.00001-of-00004.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["data", "inspect", "--source", "tokens", "--path", str(out), "--set", "data.lanes=4", "--verify"]) == 2
    assert "1 damaged file(s): " in (error := capsys.readouterr().err)
    assert path.name in error
    assert error.count("\n") == 1


def test_inspect_shows_what_the_model_will_see(source, overlay, capsys):
    arguments = ["--config", str(overlay), "--set", "data.batching=truncate", "--rows", "2", "--documents", "1000"]
    assert main(["data", "inspect", *arguments, "--verify"]) == 0
    said = capsys.readouterr().out
    assert "Tokens of a document (sample of 92)" in said
    assert "truncate (configured)" in said
    assert "92 documents, about" in said
    assert "12 steps on 1 rank(s): 36 rows" in said
    assert "0.39 epochs" in said
    assert said.count("⟨row ends⟩") + said.count("⟨end⟩") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--out", "x", "--workers", "0"], "--workers 0 is too small"),
        (["prepare", "--source", "tokens", "--out", "x"], "data.path is not set"),
        (["inspect", "--source", "local", "--path", "/no/such"], "data.path='/no/such' is not a folder"),
        (["inspect", "--documents", "0"], "--documents 0 --rows 3: at least one document"),
        (["inspect", "--set", "data.colour=red"], "data.colour"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys):
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_corpus_of_empty_documents_is_one_line(source, corpus, tmp_path, capsys):
    folder = shutil.copytree(corpus, tmp_path / "empty")
    for shard in folder.glob("c4-train.*"):
        write_shard(shard, ["", ""])
    assert main(["data", "inspect", *source, "--path", str(folder), "--set", "trainer.max_steps=3"]) == 2
    error = capsys.readouterr().err
    assert "there is no document with text in 4 training shards" in error
    assert error.count("\n") == 1
    assert main(["data", "inspect", *source, "--path", str(folder), "--documents", "4"]) == 2
    error = capsys.readouterr().err
    assert "no text in the 4 documents looked at in 4 training shards" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_corpus_of_no_documents_is_prepared(source, corpus, tmp_path, capsys):
    folder, out = shutil.copytree(corpus, tmp_path / "empty"), str(tmp_path / "tokens")
    for shard in folder.iterdir():
        write_shard(shard, [])
    assert main(["data", "prepare", *source, "--path", str(folder), "--out", out, "--workers", "1"]) == 0
    assert "4 training and 2 validation shards, 0 documents, 0 tokens" in capsys.readouterr().out


def test_verify_names_damaged_text(source, corpus, tmp_path, capsys):
    folder = shutil.copytree(corpus, tmp_path / "damaged")
    bad = folder / "c4-train.00003-of-00004.json.gz"
    bad.write_bytes(bad.read_bytes()[:-9])
    assert main(["data", "inspect", *source, "--path", str(folder), "--verify"]) == 2
    assert f"1 damaged file(s): the shard {bad} is damaged" in capsys.readouterr().err


def test_shares_of_padding_and_cut_text():
    lengths = np.array([1, 4, 5, 11])  # end tokens included; T = 4
    truncated = inspection.truncated(lengths, 4)
    assert truncated.rows == 3 / 4
    assert truncated.padding == 0
    assert truncated.targets == (3 + 4 + 4) / 12
    assert truncated.cut_off == 6 / 21
    assert inspection.truncated(lengths, 8).padding == 1 - (4 + 5 + 8) / 24
    packed = inspection.packed(lengths, 4)
    assert (packed.padding, packed.cut_off) == (0, 0)
    assert packed.rows == 21 / 4 / 4
    assert packed.targets == 1 - 4 / 21


def test_a_row_is_shown_as_its_documents():
    assert inspection.segments([5, 6, 9, 7, 9, 9, 9], 9) == ([[5, 6, 9], [7, 9]], 2)
    assert inspection.segments([5, 6, 7], 9) == ([[5, 6, 7]], 0)
    assert inspection.segments([9, 9], 9) == ([[9]], 1)
