"""Documents of a list of shards, one after the other, with a place to which reading can return exactly."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from datasets import IterableDataset

from elas_lightning.data.hub import with_retries
from elas_lightning.errors import UserError

HUB_ADVICE = "use data.source=local with downloaded shards, or data.source=pydocs, which needs no network"


class ShardReader:
    """Reads the ``text`` of C4-format records through ``datasets`` streaming.

    Shards are opened one at a time as lines of text, and the JSON is parsed here: the library's own JSON
    reader infers a schema from the first ten megabytes (and then fails on a later record that differs), reads
    those twice, is three times slower, and can name neither the file nor the record at fault.

    Args:
        shards: paths or ``hf://`` addresses, in reading order.
    """

    def __init__(self, shards: tuple[str, ...]) -> None:
        self._shards = shards
        self._shard = 0
        self._dataset: IterableDataset | None = None
        self._lines: Iterator[dict[str, list[str]]] | None = None
        self._resume: dict[str, Any] | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Where the next document comes from: ``{"shard": int, "dataset": state or None}``, plain types."""
        if self._dataset is not None:
            return {"shard": self._shard, "dataset": self._dataset.state_dict()}
        return {"shard": self._shard, "dataset": self._resume}

    def seek(self, place: dict[str, Any]) -> None:
        """Go (back) to a place; the shard is opened by the next ``read``."""
        self._shard = place["shard"]
        self._resume = place["dataset"]
        self._dataset = self._lines = None

    def read(self, count: int) -> list[str]:
        """Read up to ``count`` documents; fewer, or none, only at the end of the last shard.

        Raises:
            UserError: a shard is missing, damaged or holds something else than C4-format records, or the hub
                stays out of reach.
        """
        start = self.place
        attempts = 0

        def attempt() -> list[str]:
            nonlocal attempts
            attempts += 1
            if attempts > 1:
                self.seek(start)  # a failed attempt may have read some: begin the block again
            return self._read(count)

        if start["shard"] < len(self._shards) and self._shards[start["shard"]].startswith("hf://"):
            return with_retries(attempt, self._shards[start["shard"]], HUB_ADVICE)
        return attempt()

    def _read(self, count: int) -> list[str]:
        texts: list[str] = []
        while len(texts) < count and self._shard < len(self._shards):
            shard = self._shards[self._shard]
            try:
                if self._lines is None:
                    self._open(shard)
                assert self._lines is not None
                line = next(self._lines, None)
            except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
                if shard.startswith("hf://"):
                    raise EOFError(str(error)) from error  # a cut connection, more likely than a bad file
                raise UserError(
                    f"the shard {shard} is damaged ({error}); download it again, or take it out of the folder"
                ) from error
            except OSError as error:
                if shard.startswith("hf://"):
                    raise
                raise UserError(
                    f"the shard {shard} cannot be read ({error.strerror or error}); put it back, readable"
                ) from error
            if line is None:
                self._shard += 1
                self._dataset = self._lines = self._resume = None
            else:
                texts.append(_text_of(line["text"][0], shard))
        return texts

    def _open(self, shard: str) -> None:
        # Escaped, since the library takes brackets in a path for a pattern.
        address = shard if shard.startswith("hf://") else glob.escape(shard)
        # Not load_dataset("text", …): that calls a counter on the network, even for a file on disk.
        self._dataset = IterableDataset.from_text(address)
        if self._resume is not None:
            self._dataset.load_state_dict(self._resume)
            self._resume = None
        # Batches of one, not iter(dataset): that looks whether it is in a loader worker and would leave the
        # shard to one worker of them all, while here every worker has lanes of its own.
        self._lines = self._dataset.iter(batch_size=1)


def _text_of(line: str, shard: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(
            f"the shard {shard} has a record without a string field 'text' ({line[:60]!r}); every line must "
            'be a JSON object such as {"text": "…", "timestamp": "…", "url": "…"}'
        )
    return text
