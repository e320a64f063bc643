"""Corpora and tokenizers that are none, for ``fit`` and for ``elas data``."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_corpus import sentences, write_shard

TRAIN, VALIDATION = "c4-train.00000-of-00001.json.gz", "c4-validation.00000-of-00001.json.gz"


def _whole(folder: Path) -> None:
    folder.mkdir()
    for name, seed in ((TRAIN, "t"), (VALIDATION, "v")):
        write_shard(folder / name, sentences(seed, 40))


def _empty(folder: Path) -> None:
    folder.mkdir()


def _is_file(folder: Path) -> None:
    folder.write_text("no folder")


def _no_validation(folder: Path) -> None:
    _whole(folder)
    (folder / VALIDATION).unlink()


def _torn(folder: Path) -> None:
    _whole(folder)
    (folder / TRAIN).write_bytes((folder / TRAIN).read_bytes()[:200])


def _plain(folder: Path) -> None:
    _whole(folder)
    (folder / TRAIN).write_text('{"text": "not compressed"}\n')


def _replaced(content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _whole(folder)
        (folder / TRAIN).write_bytes(gzip.compress(content))

    return make


CORPORA: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda folder: None, "data.path='corpus' is not a folder"),
    "file": (_is_file, "data.path='corpus' is not a folder"),
    "empty": (_empty, "named c4-train"),
    "no-validation": (_no_validation, "named c4-validation"),
    "torn": (_torn, f"{TRAIN} is damaged"),
    "not-compressed": (_plain, TRAIN),
    "not-json": (_replaced(b"once upon a time\n"), TRAIN),
    "json-list": (_replaced(b"[1, 2]\n"), TRAIN),
    "no-text": (_replaced(b'{"title": "a"}\n'), f"{TRAIN} has a record without a string field 'text'"),
    "text-number": (_replaced(b'{"text": 7}\n'), f"{TRAIN}…text"),
    "not-utf8": (_replaced(b'{"text": "caf\xe9"}\n'), TRAIN),
    "no-documents": (_replaced(b""), TRAIN),
}
OWN = ("--data.path=corpus", "--data.lanes=1")


@pytest.mark.parametrize("kind", CORPORA)
def test_fit(place: Any, kind: str) -> None:
    make, saying = CORPORA[kind]
    make(place.root / "corpus")
    place.refuses("fit", "--config", "run.yaml", *OWN, saying=saying)


@pytest.mark.parametrize("kind", CORPORA)
def test_inspect(place: Any, kind: str) -> None:
    make, saying = CORPORA[kind]
    make(place.root / "corpus")
    settings = ("--config", "run.yaml", "--path", "corpus", "--set", "data.lanes=1", "--verify")
    place.refuses("data", "inspect", *settings, saying=saying)


def test_validation_text_that_is_torn(place: Any) -> None:
    _whole(place.root / "corpus")
    shard = place.root / "corpus" / VALIDATION
    shard.write_bytes(shard.read_bytes()[:100])
    place.refuses("fit", "--config", "run.yaml", *OWN, saying=f"{VALIDATION}")


@pytest.mark.parametrize(
    ("content", "saying"),
    [("{}", "tokenizer.json"), ("no json", "tokenizer.json"), (b"\xff\x00", "tokenizer.json"), ("", "tokenizer.json")],
    ids=["empty-object", "no-json", "binary", "empty"],
)
def test_tokenizers(place: Any, content: Any, saying: str) -> None:
    place.write("tokenizer.json", content)
    place.refuses("fit", "--config", "run.yaml", "--data.tokenizer=tokenizer.json", saying=saying)


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["data"], "action"),
        (["data", "prepar"], "prepar"),
        (["data", "prepare"], "--out"),
        (["data", "prepare", "--out", "shards", "--workers", "0"], "--workers"),
        (["data", "prepare", "--out", "run.yaml", "--config", "run.yaml"], "run.yaml"),
        (["data", "prepare", "--out", "shards", "--source", "disk"], "source"),
        (["data", "prepare", "--out", "shards", "--source", "local"], "data.path"),
        (["data", "prepare", "--out", "shards", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["data", "inspect", "--config", "run.yaml", "--documents", "0"], "--documents"),
        (["data", "inspect", "--config", "run.yaml", "--rows", "-1"], "--rows"),
        (["data", "inspect", "--config", "run.yaml", "--rows", "all"], "--rows"),
        (["data", "inspect", "--config", "run.yaml", "--set", "data.batch=3"], "data.batch"),
        (["data", "inspect", "--config", "experiments"], "experiments"),
        (["data", "inspect", "--source", "tokens", "--path", "experiments"], "experiments"),
    ],
)
def test_data_commands(place: Any, arguments: list[str], saying: str) -> None:
    place.refuses(*arguments, saying=saying)


def test_token_shards_that_are_torn(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from elas_lightning.cli import main

    assert main(["data", "prepare", "--config", "run.yaml", "--out", "shards", "--workers", "1"]) == 0
    whole = place.root / "shards"
    shutil.copytree(whole, place.root / "torn")
    tokens = sorted((place.root / "torn").glob("*.tokens.npy"))[0]
    tokens.write_bytes(tokens.read_bytes()[:-2])
    settings = ("fit", "--config", "run.yaml", "--data.source=tokens", "--data.tokenizer=auto")
    place.refuses(*settings, "--data.path=torn", saying=tokens.name)
    (manifest,) = whole.glob("manifest*")
    manifest.write_text(manifest.read_text()[:50])
    place.refuses(*settings, "--data.path=shards", saying=manifest.name)
    place.refuses("data", "prepare", "--config", "run.yaml", "--out", "shards", "--workers", "1", saying="shards")
