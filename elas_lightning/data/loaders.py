"""What the trainer iterates: an endless loader of training batches, and the validation set in memory."""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from elas_lightning.data.lanes import TrainStream
from elas_lightning.data.rows import IGNORED, Batching, RowCutter, count_target_bytes, make_batch
from elas_lightning.data.shards import encoded, open_documents
from elas_lightning.data.sources import Source
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError


class Parcel:
    """A batch on its way from a worker: arrays, which travel inside the message.

    A tensor travels as a file of shared memory, which the receiver has to ask the sender for: that takes longer than
    to copy some kilobytes.

    Args:
        batch: tensors of numbers that fit into 32 bits, and what else goes with them.
    """

    def __init__(self, batch: dict[str, Any]) -> None:
        self._parts = {
            name: part.int().numpy() if isinstance(part, torch.Tensor) else part for name, part in batch.items()
        }

    def unpack(self) -> dict[str, Any]:
        """The batch as it was, its tensors of int64."""
        return {
            name: torch.from_numpy(part).long() if isinstance(part, np.ndarray) else part
            for name, part in self._parts.items()
        }

    def pin_memory(self) -> dict[str, Any]:
        """The batch for a GPU; the loader's thread that pins memory calls this."""
        return {
            name: part.pin_memory() if isinstance(part, torch.Tensor) else part for name, part in self.unpack().items()
        }


class TrainLoader(DataLoader[Any]):
    """A ``DataLoader`` that hands on a worker's ``UserError`` as the one line it was, and times the waiting.

    Attributes:
        waited_seconds: how long training has waited for batches so far. While a GPU is still busy with earlier
            steps, waiting costs nothing and is not counted.
    """

    waited_seconds = 0.0

    @property
    def stream(self) -> TrainStream:
        """What is loaded."""
        assert isinstance(self.dataset, TrainStream)
        return self.dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        try:
            yield from self._timed(super().__iter__())
        except UserError as error:
            # A worker's traceback is in the message; it ends with the name of the class and our line.
            message = str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()
        # Out here, where the error and with it the workers are gone: they end at once, not when the garbage
        # of a traceback is collected. (The stream has no end, so an error is the only way to this line.)
        raise UserError(message)

    def _timed(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        has_gpu = torch.cuda.is_available()
        while True:
            busy = _mark() if has_gpu else None
            began = time.perf_counter()
            batch = next(batches)
            if busy is None or busy.query():
                self.waited_seconds += time.perf_counter() - began
            yield batch.unpack() if isinstance(batch, Parcel) else batch


def train_loader(stream: TrainStream, num_workers: int) -> TrainLoader:
    """A loader of whole batches, in the stream's order whatever the number of workers."""
    return TrainLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        # the default would walk through the cursor to turn it into tensors
        collate_fn=_parcel if num_workers else _as_it_is,
        worker_init_fn=_set_up_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event


def _as_it_is(batch: Any) -> Any:
    return batch


def _parcel(batch: Any) -> Any:
    return Parcel(batch)


def _set_up_worker(_: int) -> None:
    # The tokenizer's threads do not survive a fork, and the workers are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class ValidationSet:
    """The first rows of the validation split that make up a number of targets: always the same ones.

    Args:
        source: the corpus.
        tokenizer: of the run.
        sequence_length: T.
        batching: as in training.
        tokens: how many targets to take; the whole split where it has fewer.

    Attributes:
        input_ids: ``(R, T)`` int32.
        labels: ``(R, T)`` int32, -100 where there is no target.
        targets: how many targets there are.
    """

    def __init__(
        self, source: Source, tokenizer: TextTokenizer, sequence_length: int, batching: Batching, tokens: int
    ) -> None:
        reader, cutter = open_documents(source.validation), RowCutter(sequence_length, batching)
        self._byte_lengths = tokenizer.byte_lengths
        self._end_id = tokenizer.end_id
        inputs, labels, self.targets = [], [], 0
        while self.targets < tokens and (documents := reader.read(1024)):
            batch = make_batch(
                list(cutter.rows(encoded(documents, tokenizer, cutter.wanted))),
                sequence_length,
                self._end_id,
                self._byte_lengths,
            )
            # Whatever goes beyond the wanted number of targets stays as context and is not predicted.
            real = batch["labels"] != IGNORED
            kept = real & (self.targets + real.flatten().cumsum(0).view_as(real) <= tokens)
            rows = kept.any(dim=1)
            inputs.append(batch["input_ids"][rows].int())
            labels.append(batch["labels"].masked_fill(~kept, IGNORED)[rows].int())
            self.targets += int(kept.sum())
        if self.targets == 0:
            raise UserError(
                f"the validation split ({source.validation[0]}, …) gives not one row of data.sequence_length="
                f"{sequence_length}; add documents or choose data.batching=truncate"
            )
        self.input_ids = torch.cat(inputs)
        self.labels = torch.cat(labels)

    def batches(self, batch_size: int, rank: int, world_size: int) -> "ValidationBatches":
        """A rank's share, each row on exactly one rank; all ranks get equally many batches of equal sizes."""
        rows = -(-len(self.input_ids) // world_size)
        missing = rows - len(self.input_ids[rank::world_size])  # 0 or 1, filled by a row without targets
        pad = (0, 0, 0, missing)
        return ValidationBatches(
            torch.nn.functional.pad(self.input_ids[rank::world_size], pad, value=self._end_id),
            torch.nn.functional.pad(self.labels[rank::world_size], pad, value=IGNORED),
            self._byte_lengths,
            batch_size,
        )


class ValidationBatches:
    """A sized iterable; no ``DataLoader``, as all is in memory and no sampler may be put into it."""

    def __init__(
        self, input_ids: torch.Tensor, labels: torch.Tensor, byte_lengths: torch.Tensor, batch_size: int
    ) -> None:
        self._input_ids = input_ids
        self._labels = labels
        self._byte_lengths = byte_lengths
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._input_ids) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self._input_ids), self._batch_size):
            labels = self._labels[start : start + self._batch_size].long()
            yield {
                "input_ids": self._input_ids[start : start + self._batch_size].long(),
                "labels": labels,
                "target_bytes": count_target_bytes(labels, self._byte_lengths),
            }
