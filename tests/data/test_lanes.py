from itertools import islice

import pytest
import torch
from small_corpus import write_shard

from elas_lightning.data.lanes import Lane, StreamConfig
from elas_lightning.errors import UserError

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def batches(data, count):
    return list(islice(data.train_dataloader(), count))


def ids(batches):
    return [batch["input_ids"].tolist() for batch in batches]


def words(data, batches):
    decode = data.text_tokenizer._tokenizer.decode
    return [decode(row.tolist(), skip_special_tokens=True) for batch in batches for row in batch["input_ids"]]


def test_micro_batches_go_round_the_lanes(make_data):
    cursors = [batch["cursor"] for batch in batches(make_data(), 9)]
    assert [cursor["micro_batch"] for cursor in cursors] == list(range(9))
    assert [cursor["lane"] for cursor in cursors] == [0, 1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("batching", ["truncate", "pack"])
def test_the_order_is_the_same_with_workers(make_data, batching):
    alone = batches(make_data(batching=batching), 30)
    for workers in (2, 4):
        shared = batches(make_data(batching=batching, num_workers=workers), 30)
        assert ids(shared) == ids(alone)
        assert [b["cursor"] for b in shared] == [b["cursor"] for b in alone]


def test_the_order_follows_the_seed(make_data):
    assert ids(batches(make_data(), 4)) == ids(batches(make_data(), 4))
    assert ids(batches(make_data(), 4)) != ids(batches(make_data(seed=1), 4))


def test_an_epoch_has_every_document_once_and_the_next_another_order(make_data):
    # One lane and one document a batch: 4 shards of 23 documents are 92 batches.
    data = make_data(lanes=1, batch_size=1, batching="truncate", sequence_length=8, shuffle_block=23)
    seen = [text.split(" ")[0] for text in words(data, batches(data, 184))]
    first, second = seen[:92], seen[92:]
    assert sorted(first) == sorted(second) == sorted(f"t{shard}-{i}" for shard in range(4) for i in range(23))
    assert first != second
    # Shards follow each other whole, in an order that is new too.
    for epoch in (first, second):
        shards = [name.split("-")[0] for name in epoch]
        assert all(len(set(shards[start : start + 23])) == 1 for start in range(0, 92, 23))
    assert [name.split("-")[0] for name in first[::23]] != [name.split("-")[0] for name in second[::23]]


def test_blocks_are_shuffled_within_themselves(make_data):
    data = make_data(batch_size=1, batching="truncate", sequence_length=8)
    lane_0 = words(data, batches(data, 4 * 23)[::4])
    numbers = [int(text.split(" ")[0].split("-")[1]) for text in lane_0]
    blocks = [numbers[start : start + 5] for start in range(0, 23, 5)]
    assert [sorted(block) for block in blocks] == [list(range(s, min(s + 5, 23))) for s in range(0, 23, 5)]
    assert any(block != sorted(block) for block in blocks)


@pytest.mark.parametrize("batching", ["truncate", "pack"])
@pytest.mark.parametrize("cut", [0, 1, 3, 8, 20, 130])
def test_a_lane_goes_on_from_any_place(make_data, batching, cut):
    data = make_data(lanes=2, batching=batching)
    config = StreamConfig(data.corpus.train, 16, 3, batching, seed=0, lanes=2, shuffle_block=5)
    lane = Lane(config, data.text_tokenizer, 1, None)
    for _ in range(cut):
        lane.rows(3)
    place = lane.place()
    rest = [row.tolist() for row in lane.rows(60)]
    resumed = Lane(config, data.text_tokenizer, 1, place)
    assert resumed.place() == place
    assert [row.tolist() for row in resumed.rows(60)] == rest
    assert cut < 130 or place["epoch"] > 0, "the last cut must lie beyond the first epoch"
    assert len(place["partial"]) <= 1, "a place is small"


def test_places_are_plain(make_data, tmp_path):
    cursor = batches(make_data(), 30)[-1]["cursor"]
    torch.save(cursor, tmp_path / "cursor.pt")
    assert torch.load(tmp_path / "cursor.pt", weights_only=True) == cursor


@pytest.mark.parametrize(("workers", "documents"), [(0, []), (2, []), (0, [""] * 7)])
def test_a_lane_without_documents_is_named(make_data, tmp_path, workers, documents):
    write_shard(tmp_path / "c4-train.0.json.gz", ["some text"])
    write_shard(tmp_path / "c4-train.1.json.gz", documents)
    write_shard(tmp_path / "c4-validation.0.json.gz", ["some text"])
    data = make_data(path=str(tmp_path), lanes=2, num_workers=workers, batching="truncate")
    with pytest.raises(
        UserError, match=r"^no documents with text in 1 shard\(s\) from .*c4-train\.1\.json\.gz on.*lanes=2$"
    ):
        batches(data, 4)


def test_a_row_may_take_several_epochs_of_a_short_lane(make_data, tmp_path):
    write_shard(tmp_path / "c4-train.0.json.gz", ["some text", ""])
    write_shard(tmp_path / "c4-validation.0.json.gz", ["some text"])
    (batch,) = batches(make_data(path=str(tmp_path), lanes=1, sequence_length=64, validation_tokens=1), 1)
    assert batch["cursor"]["state"]["epoch"] > 3


def test_a_lane_goes_on_where_only_empty_documents_are_left(make_data, tmp_path):
    write_shard(tmp_path / "c4-train.0.json.gz", ["some text", *[""] * 6])
    write_shard(tmp_path / "c4-validation.0.json.gz", ["some text"])
    options = {"path": str(tmp_path), "lanes": 1, "batch_size": 1, "batching": "truncate"}
    whole = batches(make_data(**options), 4)
    data = make_data(**options)
    state = {**data.state_dict(), "next_micro_batch": 1, "places": [whole[0]["cursor"]["state"]]}
    data.load_state_dict(state)
    assert ids(batches(data, 3)) == ids(whole[1:])
