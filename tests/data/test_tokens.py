"""Token shards give the batches of the text they were made of, in its order, wherever a run changes over."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import train_on
from small_corpus import sentences, write_shard

from elas_lightning.data import prepare
from elas_lightning.data.tokens import check_sums, id_dtype, open_manifest, open_token_shard
from elas_lightning.errors import UserError

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def make_tokens(make_data, tokens):
    def make(**changes):
        return make_data(**{"source": "tokens", "path": str(tokens), "tokenizer": "auto", **changes})

    return make


def test_threads_open_shards_one_after_the_other(tokens, monkeypatch):
    """NumPy reads headers with `ast`, which two threads of Python 3.11 must not use at once."""
    load, at_once, most = np.load, [], []

    def slow(*arguments, **options):
        at_once.append(None)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.pop()
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(open_token_shard, sorted(tokens.glob("*.tokens.npy"))))
    assert set(most) == {1}


def assert_equal(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys() == {"input_ids", "labels", "target_bytes"}
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batching", ["truncate", "pack"])
def test_batches_are_those_of_the_text(make_data, make_tokens, batching, workers):
    text = make_data(batching=batching)
    tokens = make_tokens(batching=batching, num_workers=workers)
    assert_equal(train_on(tokens, 250), train_on(text, 250))
    assert tokens.state_dict()["places"] == text.state_dict()["places"]
    assert_equal(list(tokens.val_dataloader()), list(text.val_dataloader()))
    assert tokens.unigram_perplexity() == text.unigram_perplexity()


@pytest.mark.parametrize("batching", ["truncate", "pack"])
@pytest.mark.parametrize("cut", [0, 3, 47, 230])
def test_a_run_changes_over_from_text_to_tokens_and_back(make_data, make_tokens, batching, cut):
    whole = train_on(make_data(batching=batching), cut + 30)
    first = make_data(batching=batching)
    train_on(first, cut)
    second = make_tokens(batching=batching, num_workers=2)
    second.load_state_dict(first.state_dict())
    assert_equal(train_on(second, 15), whole[cut : cut + 15])
    third = make_data(batching=batching)
    third.load_state_dict(second.state_dict())
    assert_equal(train_on(third, 15), whole[cut + 15 :])


def test_the_description_says_which_form_was_read(make_data, make_tokens):
    text, tokens = make_data().description(), make_tokens().description()
    assert (text.pop("form"), tokens.pop("form")) == ("text", "tokens")
    assert text.pop("tokenizer").endswith(tokens.pop("tokenizer").rpartition(" ")[2])
    assert text == tokens


def test_files_are_plain_numpy_and_the_manifest_tells_what_is_in_them(tokens, make_data):
    manifest = open_manifest(tokens)
    data = make_data()
    for name, record in manifest.records.items():
        ids = np.load(tokens / f"{name}.tokens.npy")
        offsets = np.load(tokens / f"{name}.offsets.npy")
        assert ids.dtype == np.uint16
        assert (len(offsets) - 1, len(ids)) == (record.documents, record.tokens)
        assert (ids[offsets[1:] - 1] == data.text_tokenizer.end_id).all()
        lengths = data.text_tokenizer.byte_lengths[torch.from_numpy(ids.astype(np.int64))]
        assert int(lengths.sum()) == record.text_bytes
    assert [manifest.records[name].documents for name in manifest.train] == [23] * 4
    assert check_sums(tokens, manifest) == []
    assert sorted(path.name for path in tokens.iterdir() if path.name[0] != ".") == sorted(
        ["manifest.json", "tokenizer.json"]
        + [f"{name}.{kind}.npy" for name in manifest.records for kind in ("tokens", "offsets")]
    )


def test_a_shard_is_a_map_not_a_copy(tokens):
    ids, _ = open_token_shard(tokens / "c4-train.00000-of-00004.tokens.npy")
    assert isinstance(ids.base, np.memmap)
    assert not ids.flags.writeable


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, "uint16"), (65_536, "uint16"), (65_537, "int32"), (10**6, "int32")]
)
def test_ids_take_two_bytes_where_they_fit(vocab_size, dtype):
    assert id_dtype(vocab_size) == np.dtype(dtype)


def test_a_flipped_bit_is_found_by_its_checksum(tokens, tmp_path):
    folder = shutil.copytree(tokens, tmp_path / "copy")
    path = folder / "c4-train.00002-of-00004.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    (folder / "c4-train.00003-of-00004.offsets.npy").unlink()
    assert check_sums(folder, open_manifest(folder)) == [path.name, "c4-train.00003-of-00004.offsets.npy"]


@pytest.mark.parametrize("kind", ["cut", "missing", "of another shard"])
def test_a_damaged_token_shard_is_named(make_tokens, tokens, tmp_path, kind):
    folder = shutil.copytree(tokens, tmp_path / "copy")
    path = folder / "c4-train.00002-of-00004.tokens.npy"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif kind == "missing":
        path.unlink()
    else:
        shutil.copy(folder / "c4-train.00003-of-00004.tokens.npy", path)
    with pytest.raises(UserError, match=r"^the token shard .*00002-of-00004\.tokens\.npy cannot be read \(.*skip"):
        train_on(make_tokens(path=str(folder)), 100)


def test_a_tokenizer_of_ones_own_is_refused(make_tokens, tokenizer_file):
    with pytest.raises(UserError, match=r"data\.tokenizer='.*': token shards bring the tokenizer"):
        make_tokens(tokenizer=str(tokenizer_file)).setup("fit")


def test_other_folders_are_refused(make_tokens, corpus):
    with pytest.raises(UserError, match=r"holds no manifest\.json; name a folder that elas data prepare"):
        make_tokens(path=str(corpus)).setup("fit")
    with pytest.raises(UserError, match=r"data\.path is not set; data\.source=tokens needs the folder"):
        make_tokens(path=None).setup("fit")


def test_a_manifest_that_is_none_is_refused(make_tokens, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read .*elas data prepare, in another folder"):
        make_tokens(path=str(tmp_path)).setup("fit")


def test_what_is_there_is_not_made_again_and_nothing_else_is_overwritten(tokens, make_data, corpus, tmp_path):
    folder = shutil.copytree(tokens, tmp_path / "copy")
    data = make_data()
    before = (folder / "c4-train.00000-of-00004.tokens.npy").stat().st_mtime_ns
    assert prepare.prepare(data.corpus, data.text_tokenizer, folder, 1) == open_manifest(folder)
    assert (folder / "c4-train.00000-of-00004.tokens.npy").stat().st_mtime_ns == before
    (folder / "c4-train.00001-of-00004.offsets.npy").unlink()
    with pytest.raises(UserError, match=r"has lost 1 of its files, c4-train\.00001-of-00004\.offsets\.npy among"):
        prepare.prepare(data.corpus, data.text_tokenizer, folder, 1)
    other = shutil.copytree(corpus, tmp_path / "other")
    write_shard(other / "c4-train.00000-of-00004.json.gz", sentences("x", 9))
    changed = make_data(path=str(other))
    with pytest.raises(UserError, match=r"holds token shards of local .*, not of local .*--out"):
        prepare.prepare(changed.corpus, changed.text_tokenizer, folder, 1)
    with pytest.raises(UserError, match=r"is not empty and holds no token shards"):
        prepare.prepare(data.corpus, data.text_tokenizer, other, 1)
    again = make_data(source="tokens", path=str(folder), tokenizer="auto")
    with pytest.raises(UserError, match=r"is prepared already"):
        prepare.prepare(again.corpus, again.text_tokenizer, tmp_path / "third", 1)


@pytest.mark.parametrize("written", ["nothing", "tokenizer.json.part", "tokenizer.json", "unfinished.json.part"])
def test_a_preparation_killed_at_its_beginning_goes_on(make_data, tmp_path, written):
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / ".lock").touch()
    if written.endswith(".part"):
        (folder / f".{written.removesuffix('.part')}.unfinished").write_text("{")
    if written in ("tokenizer.json", "unfinished.json.part"):
        (folder / "tokenizer.json").write_text("{}")
    data = make_data()
    plan = prepare._plan(data.corpus, data.text_tokenizer)
    assert prepare._begin(folder, plan, data.text_tokenizer)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "tokenizer.json", "unfinished.json"]
    assert (folder / "tokenizer.json").read_text() == data.text_tokenizer.definition


@pytest.mark.slow
def test_a_damaged_text_shard_ends_the_preparation_which_then_goes_on(make_data, corpus, tmp_path):
    text, folder = shutil.copytree(corpus, tmp_path / "text"), tmp_path / "tokens"
    bad = text / "c4-train.00002-of-00004.json.gz"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-40] + bytes(40))  # the size, and with it the fingerprint, stays
    data = make_data(path=str(text))
    with pytest.raises(UserError, match=r"the shard .*00002-of-00004\.json\.gz is damaged"):
        prepare.prepare(data.corpus, data.text_tokenizer, folder, 1)
    with pytest.raises(UserError, match=r"are unfinished; run the same elas data prepare again"):
        make_data(source="tokens", path=str(folder), tokenizer="auto").setup("fit")
    done = folder / "c4-train.00000-of-00004.tokens.npy"
    before = done.stat().st_mtime_ns
    bad.write_bytes(whole)
    manifest = prepare.prepare(data.corpus, data.text_tokenizer, folder, 1)
    assert done.stat().st_mtime_ns == before, "what was whole is not made again"
    assert check_sums(folder, manifest) == []


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_leaves_no_processes(corpus, tokenizer_file, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for shard in range(12):
        write_shard(text / f"c4-train.{shard:05d}-of-00012.json.gz", sentences(f"t{shard}", 4000))
    write_shard(text / "c4-validation.00000-of-00001.json.gz", sentences("v", 5))
    script = tmp_path / "prepare_it.py"
    script.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from elas_lightning.data import prepare
        if __name__ == "__main__":
            data = C4DataModule(source="local", path={str(text)!r}, tokenizer={str(tokenizer_file)!r})
            prepare.prepare(data.corpus, data.text_tokenizer, Path({str(tmp_path / "tokens")!r}), 2)
        """)
    )
    running = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "tokens").glob("*.record.json")):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.01)
    children = _children(running.pid)
    running.send_signal(signal.SIGKILL)
    running.wait()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").glob("*.record.json")}
    assert made
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a process outlived the one that it worked for"
        time.sleep(0.05)
    made |= {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").glob("*.record.json")}
    tokens_made = {path: Path(str(path).replace(".record.json", ".tokens.npy")).stat().st_mtime_ns for path in made}
    subprocess.run([sys.executable, str(script)], check=True)
    for record, before in tokens_made.items():
        assert Path(str(record).replace(".record.json", ".tokens.npy")).stat().st_mtime_ns == before
    manifest = open_manifest(tmp_path / "tokens")
    assert check_sums(tmp_path / "tokens", manifest) == []
    assert sum(record.documents for record in manifest.records.values()) == 48_005
    assert json.loads((tmp_path / "tokens" / "manifest.json").read_text())["format"] == 1


def _children(pid: int) -> list[int]:
    """Those of its server, too."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(status.parent.name)
            found += [child, *_children(child)]
    return found


def test_a_full_disk_is_one_line(make_data, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "_write", full)
    data = make_data()
    with pytest.raises(UserError, match=r"cannot be written into .* \(No space left on device\); make room"):
        prepare.prepare(data.corpus, data.text_tokenizer, tmp_path / "tokens", 1)
