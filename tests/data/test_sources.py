import shutil
from pathlib import Path

import pytest

from elas_lightning.data.sources import C4_REVISION, open_source
from elas_lightning.errors import UserError


def test_c4_is_the_pinned_commit_of_the_hub_and_asks_for_nothing_yet(tmp_path, no_network):
    source = open_source("c4", None, None, tmp_path)
    assert len(source.train) == 1024
    assert len(source.validation) == 8
    assert source.train[7] == f"hf://datasets/allenai/c4@{C4_REVISION}/en/c4-train.00007-of-01024.json.gz"
    assert open_source("c4", None, "abc", tmp_path).fingerprint == "allenai/c4/en@abc"


def test_local_shards_are_sorted_and_their_fingerprint_sees_a_change(corpus, tmp_path):
    source = open_source("local", str(corpus), None, tmp_path)
    assert [Path(path).name for path in source.train] == [f"c4-train.{i:05d}-of-00004.json.gz" for i in range(4)]
    for path in (*source.train, *source.validation):
        shutil.copy(path, tmp_path)
    assert open_source("local", str(tmp_path), None, tmp_path).fingerprint == source.fingerprint
    (tmp_path / Path(source.train[0]).name).write_bytes(b"shorter")
    assert open_source("local", str(tmp_path), None, tmp_path).fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("name", "path", "revision", "message"),
    [
        ("local", None, None, r"data\.path is not set"),
        ("local", "/no/such/folder", None, r"data\.path='/no/such/folder' is not a folder"),
        ("pydocs", "/somewhere", None, r"data\.path='/somewhere' is only read with data\.source=local"),
        ("local", "/somewhere", "abc", r"data\.revision='abc' is only read with data\.source=c4"),
    ],
)
def test_options_that_do_not_fit(name, path, revision, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_source(name, path, revision, tmp_path)


def test_a_folder_without_shards_says_what_they_are_called(tmp_path):
    with pytest.raises(UserError, match=r"no file in .* is named c4-train\.\*\.json\.gz"):
        open_source("local", str(tmp_path), None, tmp_path)
    (tmp_path / "c4-train.00000-of-00001.json.gz").touch()
    with pytest.raises(UserError, match=r"is named c4-validation\.\*\.json\.gz"):
        open_source("local", str(tmp_path), None, tmp_path)


def test_a_shard_that_is_a_link_to_nowhere_is_named(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"c4-{split}.00000-of-00001.json.gz").symlink_to("gone")
    with pytest.raises(UserError, match=r"c4-train\.00000-of-00001\.json\.gz cannot be read \(No such file"):
        open_source("local", str(tmp_path), None, tmp_path)
