"""Ranks and workers share shards that do not divide evenly: each document once in each epoch of its lane."""

from collections import Counter
from itertools import islice

import pytest
from small_corpus import sentences, write_shard

from elas_lightning.data.lanes import StreamConfig, TrainStream
from elas_lightning.data.loaders import train_loader

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

DOCUMENTS = (5, 11, 1, 7, 13, 2, 9)  # of each shard
LANES, EPOCHS = 6, 3  # lane 0 has two shards, the others one


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    for shard, count in enumerate(DOCUMENTS):
        write_shard(folder / f"{shard}.json.gz", sentences(f"{shard}", count))
    return tuple(str(folder / f"{shard}.json.gz") for shard in range(len(DOCUMENTS)))


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 3), (2, 3), (3, 0), (3, 2), (6, 1)])
def test_every_document_once_an_epoch_over_all_ranks_and_workers(shards, make_data, world_size, workers):
    tokenizer = make_data().text_tokenizer
    config = StreamConfig(shards, 8, 1, "truncate", seed=3, lanes=LANES, shuffle_block=4)
    lane_documents = [
        [f"{s}-{i}" for s in range(lane, len(DOCUMENTS), LANES) for i in range(DOCUMENTS[s])] for lane in range(LANES)
    ]
    rounds = EPOCHS * max(map(len, lane_documents))
    seen: dict[int, list[str]] = {lane: [] for lane in range(LANES)}
    owners: dict[int, set[int]] = {lane: set() for lane in range(LANES)}
    for rank in range(world_size):
        stream = TrainStream(config, tokenizer, rank, world_size, 0, [None] * LANES)
        for batch in islice(train_loader(stream, workers), rounds * LANES // world_size):
            lane = batch["cursor"]["lane"]
            owners[lane].add(rank)
            seen[lane].append(tokenizer.decode(batch["input_ids"][0].tolist()).split(" ")[0])
    assert all(len(ranks) == 1 for ranks in owners.values())
    for lane, documents in enumerate(lane_documents):
        for epoch in range(EPOCHS):
            taken = seen[lane][epoch * len(documents) : (epoch + 1) * len(documents)]
            assert Counter(taken) == Counter(documents)
    first_epoch = [name for lane in range(LANES) for name in seen[lane][: len(lane_documents[lane])]]
    assert Counter(first_epoch) == Counter(f"{s}-{i}" for s, n in enumerate(DOCUMENTS) for i in range(n))
