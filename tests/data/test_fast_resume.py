"""A stream of text that has passed a million documents goes on in under five seconds."""

import json
import random
import time
from itertools import islice

import pytest
from isal import igzip
from small_corpus import WORDS

from elas_lightning.data import C4DataModule

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

LANES, BLOCK, BLOCKS_DONE = 16, 1024, 62
PASSED = LANES * BLOCK * BLOCKS_DONE  # documents
BATCH_SIZE = 16


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """16 shards of 64,512 numbered documents of about 2 kB: 2 GB of text."""
    folder = tmp_path_factory.mktemp("million")
    rng = random.Random(0)
    syllables = [word[:3] for word in WORDS if word.isascii()]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)]
    bodies = [" ".join(rng.choices(words, k=rng.randint(100, 400))) for _ in range(2_000)]
    assert 1_900 < sum(map(len, bodies)) / len(bodies) < 2_100
    for shard in range(LANES):
        with igzip.open(folder / f"c4-train.{shard:05d}-of-{LANES:05d}.json.gz", "wt") as file:
            for number in range(BLOCK * (BLOCKS_DONE + 1)):
                file.write(json.dumps({"text": f"{shard} {number} {rng.choice(bodies)}"}) + "\n")
    with igzip.open(folder / "c4-validation.00000-of-00001.json.gz", "wt") as file:
        file.write(json.dumps({"text": bodies[0]}) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_after_a_million_documents_in_under_five_seconds(million, tokenizer_file, workers, tmp_path):
    assert PASSED > 1_000_000
    data = C4DataModule(
        source="local",
        path=str(million),
        tokenizer=str(tokenizer_file),
        sequence_length=256,
        batch_size=BATCH_SIZE,
        lanes=LANES,
        shuffle_block=BLOCK,
        num_workers=workers,
        cache_dir=str(tmp_path),
    )
    data.setup("fit")
    state = data.state_dict()
    # What a run reaches after that many documents: each lane at the beginning of the next block of its one shard.
    place = {"epoch": 0, "block": BLOCKS_DONE, "shard": 0, "document": BLOCK * BLOCKS_DONE, "position": 0}
    state["places"] = [{**place, "offset": 0, "partial": [], "skipped": {}} for _ in range(LANES)]
    state["next_micro_batch"] = PASSED // BATCH_SIZE
    data.load_state_dict(state)
    began = time.perf_counter()
    batches = list(islice(data.train_dataloader(), LANES))
    seconds = time.perf_counter() - began
    print(f"{workers} workers: {seconds:.2f} s")
    for batch in batches:
        for row in batch["input_ids"]:
            shard, number, *_ = data.text_tokenizer.decode(row.tolist()).split()
            assert int(shard) == batch["cursor"]["lane"]
            assert BLOCK * BLOCKS_DONE <= int(number) < BLOCK * (BLOCKS_DONE + 1)
    assert seconds < 5
