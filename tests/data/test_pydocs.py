import gzip
import json
from importlib import metadata

import pytest

from elas_lightning.data import C4DataModule, pydocs
from elas_lightning.errors import UserError


@pytest.fixture
def two_packages(monkeypatch):
    # The code is the same for two packages as for all of them, and ten times as fast.
    monkeypatch.setattr(pydocs, "PACKAGES", {"optuna": "optuna", "networkx": "networkx"})


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.usefixtures("two_packages", "no_network")
def test_corpus_is_prose_in_the_form_of_c4_the_same_every_time(tmp_path):
    corpus = pydocs.ensure_corpus(tmp_path / "a")
    train = [record for path in sorted(corpus.glob("c4-train.*-of-00016.json.gz")) for record in read(path)]
    validation = read(corpus / "c4-validation.00000-of-00001.json.gz")
    assert len(list(corpus.glob("c4-train.*"))) == 16
    assert 0.02 < len(validation) / (len(train) + len(validation)) < 0.10
    texts = [record["text"] for record in train + validation]
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= pydocs.MINIMUM_CHARACTERS
    assert set(train[0]) == {"text", "timestamp", "url"}
    assert any(record["url"] == "pydoc://networkx/networkx.classes.graph#Graph" for record in train + validation)
    packages = [record["url"].split("/")[2] for record in train[:100]]
    assert len({*packages}) == 2, "the order must not follow the packages"
    manifest = pydocs.manifest(corpus)
    assert manifest["documents"] == {"train": len(train), "validation": len(validation)}
    assert manifest["versions"]["optuna"] == metadata.version("optuna")

    again = pydocs.ensure_corpus(tmp_path / "b")
    for path in corpus.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("two_packages", "no_network")
def test_data_module_trains_and_keeps_its_tokenizer(tmp_path):
    data = C4DataModule(cache_dir=str(tmp_path), batch_size=2)
    data.prepare_data()
    assert data.vocab_size == 4096
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (2, 256)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    again = C4DataModule(cache_dir=str(tmp_path), batch_size=2)
    assert again.description() == data.description()
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs, "PACKAGES", {"nowhere": "no-such-distribution"})
    with pytest.raises(UserError, match="no-such-distribution is not installed"):
        pydocs.ensure_corpus(tmp_path)


def test_packages_are_found_by_name():
    # Not that any is importable: merely that nobody renames one without the other.
    for distribution in pydocs.PACKAGES.values():
        assert metadata.version(distribution)
