import gzip
import json

import pytest
from datasets import IterableDataset
from small_corpus import sentences, write_shard

from elas_lightning.data import hub
from elas_lightning.data.shards import TextReader
from elas_lightning.errors import UserError


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "with [brackets] and spaces"
    folder.mkdir()
    paths = tuple(str(folder / f"{i}.json.gz") for i in range(3))
    for i, path in enumerate(paths):
        write_shard(folder / path, [f"{i}.{k}\u2028 {text}" for k, text in enumerate(sentences("s", 7))])
    return paths


def read_all(reader, count):
    texts = []
    while block := reader.read(count):
        texts += block
    return texts


@pytest.mark.usefixtures("no_network")
def test_reads_all_documents_in_order_whatever_the_blocks(shards):
    texts = read_all(TextReader(shards), 4)
    assert [text.split("\u2028")[0] for text in texts] == [f"{i}.{k}" for i in range(3) for k in range(7)]
    assert read_all(TextReader(shards), 100) == texts


@pytest.mark.parametrize("before", range(0, 22, 3))
def test_comes_back_to_any_place(shards, before):
    reader = TextReader(shards)
    reader.read(before)
    place = reader.place
    rest = read_all(reader, 5)
    other = TextReader(shards)
    other.seek(place)
    assert other.place == place
    assert read_all(other, 5) == rest
    reader.seek(place)
    assert read_all(reader, 2) == rest


def damaged(kind, whole):
    if kind == "truncated":
        return whole[: len(whole) // 2]
    if kind == "not gzip":
        return b"plain text"
    if kind == "not UTF-8":
        return gzip.compress(b'{"text": "\xff"}\n')
    return whole[:40] + bytes(30) + whole[70:]


@pytest.mark.parametrize("kind", ["truncated", "not gzip", "not UTF-8", "overwritten"])
def test_a_damaged_shard_is_named(shards, kind):
    with open(shards[1], "rb") as file:
        whole = file.read()
    with open(shards[1], "wb") as file:
        file.write(damaged(kind, whole))
    with pytest.raises(UserError) as caught:
        read_all(TextReader(shards), 4)
    assert str(caught.value).startswith(f"the shard {shards[1]} is damaged (")
    assert "\n" not in str(caught.value)


def test_a_shard_that_vanished_is_named(shards, tmp_path):
    missing = str(tmp_path / "gone.json.gz")
    with pytest.raises(UserError, match=r"gone\.json\.gz cannot be read"):
        TextReader((missing,)).read(1)


@pytest.mark.parametrize("line", ['{"body": "x"}', '{"text": null}', '["text"]', "text", "\ufeff{}"])
def test_a_record_without_text_is_shown(tmp_path, line):
    path = tmp_path / "s.json.gz"
    path.write_bytes(gzip.compress(f'{{"text": "good"}}\n{line}\n'.encode()))
    with pytest.raises(UserError, match=r"s\.json\.gz has a record without a string field 'text'"):
        TextReader((str(path),)).read(5)


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
@pytest.mark.parametrize("before", range(8))
def test_blank_lines_and_a_byte_order_mark_are_no_documents(tmp_path, monkeypatch, before, chunk):
    """As for the datasets library, and wherever a chunk that is read at once begins; places count documents."""
    monkeypatch.setattr("elas_lightning.data.shards._CHUNK", chunk)
    texts = sentences("s", 7)
    lines = [json.dumps({"text": text}) for text in texts]
    path = tmp_path / "s.json.gz"
    marked = "\n" + "\n".join(lines[:3]) + "\r\n \t\r\n\n" + "\n\n".join(lines[3:]) + "\n\n" + " " * 30 + "\n"
    path.write_bytes(gzip.compress(marked.encode("utf-8-sig")))
    reader = TextReader((str(path),))
    reader.seek({"shard": 0, "document": before})
    assert read_all(reader, 2) == texts[before:]


def from_hub(monkeypatch, shards, failures):
    """Let the hub hold the shards, and break the connection in mid-block as often as told."""
    from_text = IterableDataset.from_text
    left = [failures]

    class Cut:
        def __init__(self, dataset):
            self._dataset = dataset

        def iter(self, batch_size):
            for count, lines in enumerate(self._dataset.iter(batch_size=2)):
                if count == 1 and left[0]:
                    left[0] -= 1
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                yield lines

    def open_shard(address):
        return Cut(from_text(shards[int(address.removeprefix("hf://"))].replace("[", "[[]")))

    monkeypatch.setattr(IterableDataset, "from_text", open_shard)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    return TextReader(tuple(f"hf://{i}" for i in range(len(shards))))


def test_a_cut_connection_neither_loses_nor_repeats_documents(shards, monkeypatch):
    whole = read_all(TextReader(shards), 4)
    assert read_all(from_hub(monkeypatch, shards, failures=4), 4) == whole


def test_a_hub_that_stays_away_is_the_end_in_one_line(shards, monkeypatch):
    with pytest.raises(UserError, match=r"cannot reach the hub for hf://0 .*use data\.source=local"):
        read_all(from_hub(monkeypatch, shards, failures=99), 4)
