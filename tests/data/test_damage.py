"""A damaged shard stops a run, or is skipped if that was asked for: counted, named, and the same after a resume."""

import gzip
import logging
import shutil

import pytest
from batches import train_on_ids
from small_corpus import sentences, write_shard

from elas_lightning.data.shards import TextReader
from elas_lightning.errors import UserError

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BAD = "c4-train.00002-of-00004"


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def with_line(content, line):
    lines = gzip.decompress(content).split(b"\n")
    return gzip.compress(b"\n".join([*lines[:9], line, *lines[9:]]))


DAMAGE = {
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut at its end": lambda content: content[:-8],
    "a flipped bit": lambda content: flipped(content, len(content) // 2),
    "a flipped bit in its checksum": lambda content: flipped(content, len(content) - 6),
    "not gzip": lambda content: b"plain text",
    "empty": lambda content: b"",
    "no JSON": lambda content: with_line(content, b"{"),
    "no text": lambda content: with_line(content, b'{"body": "x"}'),
    "not UTF-8": lambda content: with_line(content, b'{"text": "\xff"}'),
    "nested too deep": lambda content: with_line(content, b'{"text": "x", "y": ' + b"[" * 99_999),
    "too long a number": lambda content: with_line(content, b'{"text": "x", "y": ' + b"9" * 5000 + b"}"),
    "a lone surrogate": lambda content: with_line(content, b'{"text": "\\ud800"}'),
}


@pytest.fixture
def damaged(corpus, tmp_path):
    """Makes a copy of the corpus with one shard damaged, or missing."""

    def make(kind):
        folder = shutil.copytree(corpus, tmp_path / "damaged")
        bad = folder / f"{BAD}.json.gz"
        bad.write_bytes(DAMAGE[kind](bad.read_bytes()))
        return folder

    return make


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_stops_a_run_in_one_line_that_names_the_shard(make_data, damaged, kind):
    data = make_data(path=str(damaged(kind)))
    with pytest.raises(UserError) as caught:
        train_on_ids(data, 120)
    message = str(caught.value)
    assert f"{BAD}.json.gz" in message
    assert message.endswith(
        "put a good copy in its place, or set data.on_damaged_shard=skip to go on without the rest of it"
    )
    assert "\n" not in message


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in DAMAGE), ("cut in the middle", 2), ("empty", 2)])
def test_skipped_damage_is_named_once_and_remembered(make_data, damaged, kind, workers, caplog):
    settings = {"path": str(damaged(kind)), "on_damaged_shard": "skip", "lanes": 2}
    whole = make_data(**settings)
    batches = train_on_ids(whole, 260)
    kept = whole.description()["skipped_shards"]
    assert list(kept) == [BAD]
    assert 0 <= kept[BAD] <= 23
    assert kept[BAD] == 9 or kind not in ("no JSON", "no text", "a lone surrogate")
    assert whole.state_dict()["places"][0]["epoch"] > 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{BAD}.json.gz" in record.getMessage()
    assert f"documents from number {kept[BAD]} on are skipped in every epoch" in record.getMessage()
    for cut in (3, 40, 201):
        first = make_data(**settings)
        train_on_ids(first, cut)
        second = make_data(**settings, num_workers=workers)
        second.load_state_dict(first.state_dict())
        assert train_on_ids(second, 20) == batches[cut : cut + 20]
    assert train_on_ids(make_data(**settings, num_workers=workers), 120) == batches[:120]


def test_the_order_stays_when_the_shard_is_mended_in_mid_run(make_data, damaged, corpus):
    folder = damaged("cut in the middle")
    settings = {"path": str(folder), "on_damaged_shard": "skip", "lanes": 2}
    batches = train_on_ids(make_data(**settings), 200)
    first = make_data(**settings)
    train_on_ids(first, 100)
    assert first.description()["skipped_shards"]
    shutil.copy(corpus / f"{BAD}.json.gz", folder)
    second = make_data(**settings)
    second.load_state_dict(first.state_dict())
    assert train_on_ids(second, 100) == batches[100:]
    with pytest.raises(UserError, match=r"data\.fingerprint is"):  # unless asked, a changed corpus is another
        make_data(**{**settings, "on_damaged_shard": "stop"}).load_state_dict(first.state_dict())


@pytest.mark.parametrize("met", [True, False])
def test_a_shard_that_vanishes_in_mid_run(make_data, corpus, tmp_path, met):
    folder = shutil.copytree(corpus, tmp_path / "vanishing")
    settings = {"path": str(folder), "on_damaged_shard": "skip", "lanes": 2}
    first = make_data(**settings)
    loader = iter(first.train_dataloader())
    for _ in range(4):
        first.on_after_batch_transfer(next(loader), 0)
    (folder / f"{BAD}.json.gz").unlink()
    if met:
        for _ in range(200):
            first.on_after_batch_transfer(next(loader), 0)
    state = first.state_dict()
    second = make_data(**settings)
    second.prepare_data()
    second.setup("fit")
    second.load_state_dict(state)
    batches = train_on_ids(second, 30)
    assert bool(first.description()["skipped_shards"]) == met
    if met:  # else the first run may have the file still open, and know more of it than the second
        assert batches == [first.on_after_batch_transfer(next(loader), 0)["input_ids"].tolist() for _ in range(30)]
    assert second.description()["skipped_shards"].keys() == {BAD}
    with pytest.raises(UserError, match=r"data\.fingerprint is"):
        make_data(**{**settings, "on_damaged_shard": "stop"}).load_state_dict(state)


def test_a_missing_token_shard_is_skipped_alike(make_data, tokens, tmp_path):
    folder = shutil.copytree(tokens, tmp_path / "copy")
    (folder / f"{BAD}.tokens.npy").unlink()
    settings = {"source": "tokens", "path": str(folder), "tokenizer": "auto", "lanes": 2}
    with pytest.raises(UserError, match=rf"the token shard .*{BAD}\.tokens\.npy cannot be read \(No such file"):
        train_on_ids(make_data(**settings), 120)
    data = make_data(**settings, on_damaged_shard="skip")
    train_on_ids(data, 120)
    assert data.description()["skipped_shards"] == {BAD: 0}


def test_validation_is_never_cut_short(make_data, corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "damaged")
    bad = folder / "c4-validation.00001-of-00002.json.gz"
    bad.write_bytes(bad.read_bytes()[:-20])
    # and nobody is told to skip it
    good_copy = r"c4-validation\.00001-of-00002\.json\.gz is damaged \(.*\); put a good copy in its place$"
    for on_damage in ("stop", "skip"):
        with pytest.raises(UserError, match=good_copy):
            make_data(path=str(folder), on_damaged_shard=on_damage).val_dataloader()


def test_a_lane_of_nothing_but_damage_ends_the_run(make_data, damaged):
    data = make_data(path=str(damaged("empty")), on_damaged_shard="skip")
    with pytest.raises(UserError, match=r"no documents with text in 1 shard\(s\) from .*lane 2"):
        train_on_ids(data, 20)


def test_plain_json_lines_are_read_too(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}')
    assert TextReader((str(path),)).read(5) == ["one", "two"]


def test_shards_larger_than_a_chunk_come_back_to_any_place(tmp_path):
    texts = [text * 40 for text in sentences("long", 1200)]
    write_shard(tmp_path / "s.json.gz", texts)
    assert sum(map(len, texts)) > 3 << 20
    reader = TextReader((str(tmp_path / "s.json.gz"),))
    for document in (0, 1, 399, 400, 777, 1199):
        reader.seek({"shard": 0, "document": document})
        assert reader.read(3) == texts[document : document + 3]
