"""Documents of a list of shards, one after the other, with a place to which reading can return exactly.

A place counts documents, so that it means the same in a text shard and in the token shard made of it.
"""

import codecs
import gzip
import json
import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, Literal, TypeVar, cast

import numpy as np
from datasets import IterableDataset
from isal import igzip
from isal.igzip_lib import IsalError

from elas_lightning.data.hub import with_retries
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.data.tokens import TOKENS_SUFFIX, open_token_shard, shard_name
from elas_lightning.errors import UserError

OnDamage = Literal["stop", "skip"]
Document = TypeVar("Document")

HUB_ADVICE = "use data.source=local with downloaded shards, or data.source=pydocs, which needs no network"
_CHUNK = 1 << 20  # bytes of text read at once; always the same, so that damage is met at the same document
_HUB_BATCH = 256
_LINE_END, _SPACE = ord("\n"), ord(" ")
# the type stub of isal 1.9 takes its exception for a value
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, cast(type[Exception], IsalError))
_log = logging.getLogger(__name__)


class DamagedShard(Exception):
    """A shard cannot be read further; the message says which, where and why, without what to do."""


class ShardReader(ABC, Generic[Document]):
    """Walks through shards and remembers where it is.

    A shard whose damage is skipped ends, in this and every later pass, with the last document before the damage.

    Args:
        shards: paths or ``hf://`` addresses, in reading order.
        on_damage: what to do about a shard that cannot be read to its end; None stops as well, and advises nothing
            else, for whoever has no other choice.
        skipped: damage met earlier: name of the shard to the documents that it still has.
    """

    def __init__(
        self, shards: tuple[str, ...], on_damage: OnDamage | None = None, skipped: dict[str, int] | None = None
    ) -> None:
        self._shards = shards
        self._on_damage = on_damage
        self.skipped = dict(skipped or {})
        self._shard = 0
        self._document = 0
        self._documents: Iterator[Document] | None = None

    @abstractmethod
    def _open(self, shard: str, document: int) -> Iterator[Document]:
        """The documents of a shard from number ``document`` on.

        Raises:
            DamagedShard: it cannot be read, or not further.
        """

    @property
    def place(self) -> dict[str, int]:
        """Where the next document comes from: the index of its shard and its number in it."""
        return {"shard": self._shard, "document": self._document}

    def seek(self, place: dict[str, int]) -> None:
        """Go (back) to a place; the shard is opened by the next ``read``."""
        self._shard, self._document = place["shard"], place["document"]
        self._documents = None

    def read(self, count: int) -> list[Document]:
        """Read up to ``count`` documents; fewer, or none, only at the end of the last shard.

        Raises:
            UserError: a shard is missing, damaged or holds something else than documents (and that is not to be
                skipped), or the hub stays out of reach.
        """
        start = self.place
        attempts = 0

        def attempt() -> list[Document]:
            nonlocal attempts
            attempts += 1
            if attempts > 1:
                self.seek(start)  # a failed attempt may have read some: begin the block again
            return self._read(count)

        if start["shard"] < len(self._shards) and self._shards[start["shard"]].startswith("hf://"):
            return with_retries(attempt, self._shards[start["shard"]], HUB_ADVICE)
        return attempt()

    def _read(self, count: int) -> list[Document]:
        documents: list[Document] = []
        while len(documents) < count and self._shard < len(self._shards):
            shard = self._shards[self._shard]
            try:
                if self._documents is None:
                    self._documents = self._open_kept(shard)
                document = next(self._documents, None)
            except DamagedShard as damage:
                if self._on_damage != "skip":
                    advice = "put a good copy in its place"
                    if self._on_damage == "stop":
                        advice += ", or set data.on_damaged_shard=skip to go on without the rest of it"
                    raise UserError(f"{damage}; {advice}") from damage
                self.skipped[shard_name(shard)] = self._document
                _log.warning(
                    "%s; documents from number %d on are skipped in every epoch (data.on_damaged_shard=skip)",
                    damage,
                    self._document,
                )
                document = None
            if document is None:
                self._shard += 1
                self._document = 0
                self._documents = None
            else:
                documents.append(document)
                self._document += 1
        return documents

    def _open_kept(self, shard: str) -> Iterator[Document]:
        kept = self.skipped.get(shard_name(shard))
        if kept is None:
            return self._open(shard, self._document)
        if self._document >= kept:
            return iter(())
        return islice(self._open(shard, self._document), kept - self._document)


class TextReader(ShardReader[str]):
    """Reads the ``text`` of C4-format records: from disk, or from the hub through ``datasets`` streaming.

    Going to a place means decompressing the shard up to it, at some hundred megabytes of text a second, and counting
    line ends; nothing is parsed or tokenized again. On the hub the shard is downloaded again up to the place.
    """

    def _open(self, shard: str, document: int) -> Iterator[str]:
        lines = _hub_lines(shard, document) if shard.startswith("hf://") else _local_lines(shard, document)
        for number, line in enumerate(lines, start=document):
            yield _text_of(line, number, shard)


class TokenReader(ShardReader[np.ndarray]):
    """Reads documents of token shards: views of memory-mapped ids, at any place at once."""

    def _open(self, shard: str, document: int) -> Iterator[np.ndarray]:
        try:
            ids, offsets = open_token_shard(Path(shard))
        except (OSError, ValueError) as error:
            raise DamagedShard(f"the token shard {shard} cannot be read ({_reason(error)})") from error
        for start, end in zip(offsets[document:-1], offsets[document + 1 :], strict=True):
            yield ids[start:end]


def open_documents(
    shards: tuple[str, ...], on_damage: OnDamage | None = None, skipped: dict[str, int] | None = None
) -> ShardReader[Any]:
    """The reader for a list of shards, text or tokens; :func:`encoded` makes ids of what it reads."""
    kind = TokenReader if shards and shards[0].endswith(TOKENS_SUFFIX) else TextReader
    return kind(shards, on_damage, skipped)


def encoded(documents: list[Any], tokenizer: TextTokenizer, wanted: int | None = None) -> list[np.ndarray]:
    """Ids of documents, each closed by the end token; those of token shards are ids already.

    Args:
        documents: as a reader gave them.
        tokenizer: of the run.
        wanted: how many tokens of each are enough; None for all.
    """
    if not documents or not isinstance(documents[0], str):
        return documents
    return tokenizer.encode(documents, wanted)


def count_documents(shard: str) -> int:
    """How many records a text shard on disk has, by its line ends.

    Raises:
        UserError: it cannot be read to its end.
    """
    try:
        return sum(1 for _ in _local_lines(shard, 0))
    except DamagedShard as damage:
        raise UserError(str(damage)) from damage


def _local_lines(shard: str, skip: int) -> Iterator[str]:
    """The lines of a file on disk from number ``skip`` on; blank ones, and a byte order mark, are none."""
    try:
        with _open_file(shard) as file:
            begun = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
            while chunk := file.read(_CHUNK):
                begun += chunk
                if skip:
                    ends = _ends_of_lines(begun)
                    if 0 < len(ends) < skip:
                        skip, begun = skip - len(ends), begun[ends[-1] + 1 :]
                        continue
                *whole, begun = begun.split(b"\n")
                lines = [line for line in whole if line.strip()]
                for line in lines[skip:]:
                    yield line.decode("utf-8")
                skip = max(0, skip - len(lines))
            if begun.strip() and not skip:
                yield begun.decode("utf-8")
    except _DAMAGE as error:
        raise DamagedShard(f"the shard {shard} is damaged ({_reason(error)})") from error
    except OSError as error:
        raise DamagedShard(f"the shard {shard} cannot be read ({_reason(error)})") from error


def _ends_of_lines(text: bytes) -> np.ndarray:
    """Where lines end, found several times as fast as by splitting, and other threads may run meanwhile.

    None where a line may be blank, which this does not tell.
    """
    characters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(characters == _LINE_END)
    begins_blank = text[:1].isspace() or bool((characters[ends[:-1] + 1] <= _SPACE).any())
    return ends[:0] if begins_blank else ends


def _open_file(shard: str) -> IO[bytes]:
    with open(shard, "rb") as file:
        beginning = file.read(2)
    if shard.endswith(".gz"):
        if not beginning:
            raise EOFError("the file is empty")
        # three times as fast as Python's own, and as strict about checksums and missing ends
        return cast(IO[bytes], igzip.open(shard, "rb"))
    return open(shard, "rb")


def _hub_lines(shard: str, skip: int) -> Iterator[str]:
    # Not load_dataset("text", …): that calls a counter on the network. Not the library's JSON reader: it infers a
    # schema from the first ten megabytes, and then fails on a later record that differs.
    batches = IterableDataset.from_text(shard).iter(batch_size=_HUB_BATCH)
    # iter(batch_size), not iter(dataset): that looks whether it is in a loader worker and would leave the shard to one
    # worker of them all, while here every worker has lanes of its own.
    try:
        for batch in batches:
            lines = batch["text"]
            if skip >= len(lines):
                skip -= len(lines)
                continue
            yield from lines[skip:]
            skip = 0
    except (gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise EOFError(str(error)) from error  # a cut connection, more likely than a bad file


def _text_of(line: str, number: int, shard: str) -> str:
    try:
        text = json.loads(line)["text"]
        if isinstance(text, str):
            text.encode()  # a lone surrogate has no UTF-8 form, and every tokenizer wants one
            return text
    except (ValueError, RecursionError, KeyError, TypeError):  # also numbers of too many digits, and deep nesting
        pass
    raise DamagedShard(
        f"the shard {shard} has a record without a string field 'text' (number {number}: {line[:60]!r}); every line "
        'must be a JSON object such as {"text": "…", "timestamp": "…", "url": "…"}'
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
