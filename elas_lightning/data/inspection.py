"""What a model will see of a corpus: documents, tokens, and what rows of a length make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from elas_lightning.data.module import C4DataModule
from elas_lightning.data.rows import Batching
from elas_lightning.data.shards import count_documents, encoded, open_documents
from elas_lightning.data.tokens import MANIFEST_NAME, check_sums, open_manifest
from elas_lightning.errors import UserError

_SAMPLED_SHARDS = 16
_COUNTED_BYTES = 1 << 30  # of compressed text on disk: a few seconds


@dataclass(frozen=True)
class Amount:
    """A number of a whole corpus, ``exact`` or estimated."""

    number: float
    exact: bool


@dataclass(frozen=True)
class RowsOf:
    """What rows of T positions make of documents, as shares.

    Args:
        rows: for each document.
        padding: of all positions.
        cut_off: of all tokens.
        targets: of all positions, those that predict something.
    """

    rows: float
    padding: float
    cut_off: float
    targets: float


def sample_lengths(data: C4DataModule, documents: int) -> np.ndarray:
    """Tokens of the first documents of up to 16 training shards, spread over all of them; end tokens included.

    Args:
        data: the corpus and its tokenizer.
        documents: how many in all.
    """
    shards = data.corpus.train
    spread = np.linspace(0, len(shards) - 1, min(len(shards), _SAMPLED_SHARDS)).astype(int)
    lengths: list[int] = []
    for left, index in zip(range(len(spread), 0, -1), spread, strict=True):
        # shards that are shorter than their part leave it to those that follow
        reader = open_documents((shards[index],), data.on_damaged_shard)
        stored = reader.read(-(-(documents - len(lengths)) // left))
        lengths += map(len, encoded(stored, data.text_tokenizer))
    if max(lengths, default=0) < 2:  # an empty one is its end token alone
        where = f"{len(spread)} training shards from {shards[0]} on"
        if len(lengths) == documents:
            raise UserError(f"no text in the {documents:,} documents looked at in {where}: give more --documents")
        raise UserError(f"there is no document with text in {where}")
    return np.array(lengths)


def corpus_size(data: C4DataModule, mean_tokens: float) -> tuple[Amount, Amount] | None:
    """Documents and tokens of the training split; None where finding out would take a download.

    Args:
        data: the corpus.
        mean_tokens: of a document, by the sample; for text, whose tokens nobody has counted.
    """
    shards = data.corpus.train
    if data.corpus.tokenizer is not None:
        manifest = open_manifest(Path(shards[0]).parent)
        records = [manifest.records[name] for name in manifest.train]
        return (
            Amount(sum(record.documents for record in records), exact=True),
            Amount(sum(record.tokens for record in records), exact=True),
        )
    if shards[0].startswith("hf://"):
        return None
    sizes = [Path(shard).stat().st_size for shard in shards]
    counted, count = 0, 0
    for shard, size in zip(shards, sizes, strict=True):
        if counted and counted + size > _COUNTED_BYTES:
            break
        counted, count = counted + size, count + count_documents(shard)
    documents = count * sum(sizes) / counted
    return Amount(documents, exact=counted == sum(sizes)), Amount(documents * mean_tokens, exact=False)


def truncated(lengths: np.ndarray, sequence_length: int) -> RowsOf:
    """The paper's rows, one a document, cut or padded to T positions.

    Args:
        lengths: tokens of documents, end tokens included.
        sequence_length: T.
    """
    rows = lengths[lengths > 1]  # an empty document gives no row
    positions = max(1, len(rows)) * sequence_length
    return RowsOf(
        rows=len(rows) / len(lengths),
        padding=1 - float(np.minimum(rows, sequence_length).sum()) / positions,
        cut_off=float(np.maximum(lengths - sequence_length - 1, 0).sum() / lengths.sum()),
        targets=float(np.minimum(rows - 1, sequence_length).sum()) / positions,
    )


def packed(lengths: np.ndarray, sequence_length: int) -> RowsOf:
    """Rows without padding, documents end to end; end tokens predict nothing. As :func:`truncated`."""
    tokens = float(lengths.sum())
    return RowsOf(
        rows=tokens / sequence_length / len(lengths), padding=0.0, cut_off=0.0, targets=1 - len(lengths) / tokens
    )


def shares(batching: Batching, lengths: np.ndarray, sequence_length: int) -> RowsOf:
    """What one way of batching makes of documents. As :func:`truncated`."""
    return (truncated if batching == "truncate" else packed)(lengths, sequence_length)


def first_rows(data: C4DataModule, count: int) -> list[list[int]]:
    """Ids of the first rows that training will see, ``count`` rows of T."""
    batches = islice(data.train_dataloader(), -(-count // data.batch_size))
    rows = [row.tolist() for batch in batches for row in batch["input_ids"]]
    return rows[:count]


def segments(row: Sequence[int], end_id: int) -> tuple[list[list[int]], int]:
    """A row as its documents, each with its end token where it is there, and the number of padding tokens behind."""
    stripped = len(row)
    while stripped > 1 and row[stripped - 1] == row[stripped - 2] == end_id:
        stripped -= 1
    found: list[list[int]] = [[]]
    for token in row[:stripped]:
        found[-1].append(token)
        if token == end_id:
            found.append([])
    return [segment for segment in found if segment], len(row) - stripped


def damaged_files(data: C4DataModule) -> list[str]:
    """Read the whole corpus: every file against its checksum, or text to the end of every shard.

    Returns:
        What is wrong, a line a file.
    """
    if data.corpus.tokenizer is not None:
        folder = Path(data.corpus.train[0]).parent
        wrong = check_sums(folder, open_manifest(folder))
        return [f"{folder / name} is missing or differs from its checksum in {MANIFEST_NAME}" for name in wrong]
    found = []
    for shard in data.corpus.train + data.corpus.validation:
        reader: Any = open_documents((shard,))
        try:
            while reader.read(1024):
                pass
        except UserError as error:
            found.append(str(error.__cause__ or error))
    return found
