import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
from small_corpus import write_shard

from elas_lightning.data.loaders import Parcel
from elas_lightning.errors import UserError

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def test_a_batch_arrives_as_it_was_sent():
    batch = {
        "input_ids": torch.tensor([[1, 2**31 - 1], [3, 4]]),
        "labels": torch.tensor([[-100, 2], [3, -100]]),
        "cursor": {"lane": 3, "state": {"partial": [1, 2]}},
    }
    message = pickle.dumps(Parcel(batch))
    assert b"torch" not in message  # nothing that has to be fetched from the sender
    arrived = pickle.loads(message).unpack()
    assert arrived["cursor"] == batch["cursor"]
    for name in ("input_ids", "labels"):
        assert arrived[name].dtype == torch.int64
        assert torch.equal(arrived[name], batch[name])


def rows_of(batches):
    return torch.cat([torch.cat([b["input_ids"], b["labels"]], dim=1) for b in batches])


@pytest.mark.parametrize("batching", ["truncate", "pack"])
def test_validation_has_exactly_the_targets_asked_for(make_data, batching):
    for tokens in (1, 37, 400):
        batches = list(make_data(batching=batching, validation_tokens=tokens).val_dataloader())
        assert sum(int((batch["labels"] != -100).sum()) for batch in batches) == tokens


def test_validation_takes_the_whole_split_where_it_is_smaller(make_data):
    data = make_data(batching="truncate", sequence_length=1000)
    batches = list(data.val_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) == 30
    targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert data.description()["validation_tokens"] == targets


def test_validation_is_the_same_whatever_the_batches(make_data):
    small, large = (make_data(validation_batch_size=1), make_data(validation_batch_size=1000, batch_size=7, seed=3))
    assert len(large.val_dataloader()) == 1
    assert torch.equal(rows_of(small.val_dataloader()), rows_of(large.val_dataloader()))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_validation_without_repeats(make_data, world_size):
    whole = make_data(validation_tokens=400)._validation
    shares = [list(whole.batches(4, rank, world_size)) for rank in range(world_size)]
    shapes = [[batch["labels"].shape for batch in share] for share in shares]
    assert all(shape == shapes[0] for shape in shapes)
    rows = torch.cat([rows_of(share) for share in shares])
    real = rows[(rows[:, 16:] != -100).any(dim=1)]
    alone = rows_of(whole.batches(4, 0, 1))
    assert sorted(real.tolist()) == sorted(alone.tolist())
    assert sum(int(batch["target_bytes"].sum()) for share in shares for batch in share) == sum(
        int(batch["target_bytes"].sum()) for batch in whole.batches(4, 0, 1)
    )


def test_target_bytes_are_those_of_the_text_behind_the_first_token(make_data, tmp_path):
    text = "naïve café — the old wall"
    write_shard(tmp_path / "c4-train.0.json.gz", [text])
    write_shard(tmp_path / "c4-validation.0.json.gz", [text])
    data = make_data(path=str(tmp_path), lanes=1, batching="truncate", sequence_length=64)
    (batch,) = data.val_dataloader()
    first = data.text_tokenizer.byte_lengths[batch["input_ids"][0, 0]]
    assert batch["target_bytes"].tolist() == [len(text.encode()) - first]


def test_a_validation_split_too_short_for_one_row(make_data):
    with pytest.raises(UserError, match=r"gives not one row of data\.sequence_length=100000"):
        make_data(sequence_length=100_000).val_dataloader()


def test_a_damaged_shard_is_one_line_from_a_worker_too(make_data, corpus, tmp_path):
    for shard in corpus.iterdir():
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    bad = tmp_path / "c4-train.00002-of-00004.json.gz"
    bad.write_bytes(bad.read_bytes()[:-30])
    messages = set()
    for workers in (0, 2):
        with pytest.raises(UserError) as caught:
            list(islice(make_data(path=str(tmp_path), num_workers=workers).train_dataloader(), 200))
        messages.add(str(caught.value))
    assert len(messages) == 1, messages
    (message,) = messages
    assert message.startswith(f"the shard {Path(bad)} is damaged (")
    assert "\n" not in message
