"""The training stream: N logical lanes whose order depends on the seed alone, never on ranks or workers.

Micro-batch m of the global order comes from lane m mod N. Rank r of W takes the micro-batches m ≡ r (mod W),
and a rank's K loader workers share those in turn, so that a lane always belongs to one worker of one rank as
long as W·K divides N. The place of a lane is a small dict of plain types that travels with each batch;
whoever consumed the batch keeps it, and any number of ranks and workers can take up the stream from the last
places.
"""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from elas_lightning.data.rows import Batching, RowCutter, make_batch
from elas_lightning.data.shards import OnDamage, ShardReader, encoded, open_documents
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError

Place = dict[str, Any]
_BEGINNING: Place = {
    "epoch": 0,
    "block": 0,
    "shard": 0,
    "document": 0,
    "position": 0,
    "offset": 0,
    "partial": [],
    "skipped": {},
}
_ENCODED_TOGETHER = 64  # enough for the tokenizer's threads; a whole block would make the first batch wait


@dataclass(frozen=True)
class StreamConfig:
    """All that the global order of batches depends on, besides the tokenizer (see ``C4DataModule``).

    ``on_damaged_shard`` decides whether a damaged shard ends the run; where it is skipped, places remember it.
    """

    shards: tuple[str, ...]
    sequence_length: int
    batch_size: int
    batching: Batching
    seed: int
    lanes: int
    shuffle_block: int
    on_damaged_shard: OnDamage = "stop"


class Lane:
    """Endless rows from shards l, l + N, …; order of shards and of documents in blocks is new every epoch.

    Blocks are shuffled, rather than the ``datasets`` library's shuffle buffer used, because that buffer holds
    documents which its ``state_dict`` leaves out: resuming loses some and repeats others. The order of a
    block follows from (seed, lane, epoch, block), so a place in it is a number. Documents are encoded in the
    order in which they are needed, and resuming encodes none a second time but those of the batch at hand.

    Args:
        config: of the stream.
        tokenizer: encodes text; token shards are encoded already.
        lane: index l of N.
        place: where to go on, as ``place()`` gave it; None for the beginning.
    """

    def __init__(self, config: StreamConfig, tokenizer: TextTokenizer, lane: int, place: Place | None) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._lane = lane
        start = place or _BEGINNING
        self._epoch: int = start["epoch"]
        self._block: int = start["block"]
        self._cutter = RowCutter(config.sequence_length, config.batching, start["partial"])
        self._reader = self._open_epoch(start["skipped"])
        self._reader.seek({"shard": start["shard"], "document": start["document"]})
        self._stored: list[Any] = []
        self._encoded: list[np.ndarray] = []
        self._encoded_from = 0
        self._load_block()
        # of a lane that goes on nobody knows what came of the epoch's beginning
        self._fruitful = place is not None
        self._position: int = start["position"]
        self._offset: int = start["offset"]

    def rows(self, count: int) -> list[np.ndarray]:
        """The next ``count`` rows, of up to T + 1 ids each."""
        rows: list[np.ndarray] = []
        while len(rows) < count:
            if self._position == len(self._stored):
                self._block += 1
                self._load_block()
                self._position = 0
            document = self._document()
            row, taken = self._cutter.add(document, self._offset)
            self._offset += taken
            if self._offset == len(document):
                self._position += 1
                self._offset = 0
            if row is not None:
                rows.append(row)
            self._fruitful |= row is not None or len(self._cutter.partial) > 0
        return rows

    def place(self) -> Place:
        """Where the next row begins: the start of the block, the place in it, the row that is begun."""
        return {
            "epoch": self._epoch,
            "block": self._block,
            **self._block_start,
            "position": self._position,
            "offset": self._offset,
            "partial": self._cutter.partial.tolist(),
            "skipped": dict(self._reader.skipped),
        }

    def _document(self) -> np.ndarray:
        """The document at the position, encoded along with those that follow it."""
        if not self._encoded_from <= self._position < self._encoded_from + len(self._encoded):
            self._encoded_from = self._position
            following = self._stored[self._position : self._position + _ENCODED_TOGETHER]
            self._encoded = encoded(following, self._tokenizer, self._cutter.wanted)
        return self._encoded[self._position - self._encoded_from]

    def _open_epoch(self, skipped: dict[str, int]) -> ShardReader[Any]:
        shards = list(self._config.shards[self._lane :: self._config.lanes])
        self._random("shards").shuffle(shards)
        return open_documents(tuple(shards), self._config.on_damaged_shard, skipped)

    def _load_block(self) -> None:
        self._block_start = self._reader.place
        stored = self._reader.read(self._config.shuffle_block)
        if not stored and self._block > 0 and self._fruitful:
            self._fruitful = False
            self._epoch += 1
            self._block = 0
            self._reader = self._open_epoch(self._reader.skipped)
            self._block_start = self._reader.place
            stored = self._reader.read(self._config.shuffle_block)
        if not stored:
            shards = self._config.shards[self._lane :: self._config.lanes]
            raise UserError(
                f"no documents with text in {len(shards)} shard(s) from {shards[0]} on, of which lane {self._lane} is "
                f"made; remove empty shards, or lower data.lanes={self._config.lanes}"
            )
        self._random("block", self._block).shuffle(stored)
        self._stored = stored
        self._encoded = []

    def _random(self, *purpose: str | int) -> random.Random:
        # Seeded by a string, which Python hashes in full: neighbouring seeds and lanes share nothing.
        return random.Random("/".join(map(str, (self._config.seed, self._lane, self._epoch, *purpose))))


class TrainStream(IterableDataset[dict[str, Any]]):
    """One rank's share of the global order, without end.

    Args:
        config: of the stream.
        tokenizer: of the run.
        rank: r.
        world_size: W; must divide ``config.lanes``.
        first: micro-batches of the global order below this one are done.
        places: where each lane goes on; None where it has not begun.
    """

    def __init__(
        self,
        config: StreamConfig,
        tokenizer: TextTokenizer,
        rank: int,
        world_size: int,
        first: int,
        places: list[Place | None],
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._rank = rank
        self._world_size = world_size
        self._first = first
        self._places = places

    def begin_at(self, first: int, places: list[Place | None]) -> None:
        """Go on there when it is iterated anew; who iterates already is not disturbed."""
        self._first = first
        self._places = places

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches (see ``make_batch``) with a ``cursor``: ``{"lane", "micro_batch", "state"}``."""
        config, tokenizer = self._config, self._tokenizer
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        # The smallest m >= first with m ≡ rank (mod W), then every K-th of the rank's own.
        begin = self._first + (self._rank - self._first) % self._world_size + index * self._world_size
        stride = workers * self._world_size
        own = dict.fromkeys((begin + turn * stride) % config.lanes for turn in range(config.lanes))
        lanes = self._resumed([number for number in own if self._places[number]], workers)
        micro_batch = begin
        while True:
            number = micro_batch % config.lanes
            if number not in lanes:
                lanes[number] = Lane(config, tokenizer, number, None)
            rows = lanes[number].rows(config.batch_size)
            batch: dict[str, Any] = dict(
                make_batch(rows, config.sequence_length, tokenizer.end_id, tokenizer.byte_lengths)
            )
            batch["cursor"] = {"lane": number, "micro_batch": micro_batch, "state": lanes[number].place()}
            yield batch
            micro_batch += stride

    def _resumed(self, numbers: list[int], workers: int) -> dict[int, Lane]:
        """Lanes at their places; text shards are decompressed up to there, which threads do side by side."""

        def resume(number: int) -> Lane:
            return Lane(self._config, self._tokenizer, number, self._places[number])

        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // workers)) as threads:
            return dict(zip(numbers, threads.map(resume, numbers), strict=True))
