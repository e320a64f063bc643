"""Token shards: text tokenized once, memory-mapped ever after.

A folder holds, for each text shard of its origin, ``NAME.tokens.npy`` (the ids of all documents, end tokens
included, uint16 where the vocabulary fits) and ``NAME.offsets.npy`` (int64, where each document begins, and the
end), beside ``tokenizer.json`` and ``manifest.json``. Both kinds of array are plain ``.npy``, which NumPy opens
without this project.
"""

import hashlib
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elas_lightning.errors import UserError

TOKENS_SUFFIX = ".tokens.npy"
OFFSETS_SUFFIX = ".offsets.npy"
MANIFEST_NAME = "manifest.json"
PLAN_NAME = "unfinished.json"  # the manifest of a folder that `elas data prepare` has still to fill
TOKENIZER_NAME = "tokenizer.json"
FORMAT = 1
# One thread at a time: NumPy parses a header with `ast`, where two threads of Python 3.11 upset each other now and then
# (SystemError: AST constructor recursion depth mismatch).
_OPENING = threading.Lock()


@dataclass(frozen=True)
class Origin:
    """What token shards were made of, and with what.

    Args:
        source: name of the source of the text.
        fingerprint: of the text.
        tokenizer: name of the tokenizer.
        tokenizer_fingerprint: of its whole definition.
        vocab_size: how many ids it makes.
    """

    source: str
    fingerprint: str
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int


@dataclass(frozen=True)
class ShardRecord:
    """What a token shard holds.

    Args:
        documents: how many.
        tokens: of all of them, end tokens included.
        text_bytes: UTF-8 bytes of their text.
        tokens_sha256: of the file of ids.
        offsets_sha256: of the file of offsets.
    """

    documents: int
    tokens: int
    text_bytes: int
    tokens_sha256: str
    offsets_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of token shards.

    Args:
        origin: of the shards.
        train: names of the training shards, in their canonical order.
        validation: the same of the validation shards.
        records: by name, once they are made.
    """

    origin: Origin
    train: tuple[str, ...]
    validation: tuple[str, ...]
    records: dict[str, ShardRecord]

    def as_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read ``manifest.json`` or ``unfinished.json``.

        Raises:
            UserError: no manifest of this version.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, not {FORMAT}")
            return cls(
                Origin(**content["origin"]),
                tuple(content["train"]),
                tuple(content["validation"]),
                {name: ShardRecord(**record) for name, record in content["records"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); make the token shards again with elas data prepare, in another "
                "folder"
            ) from error


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder.

    Raises:
        UserError: there is no such folder, no token shards in it, or not all of them yet.
    """
    if (folder / PLAN_NAME).is_file():
        raise UserError(
            f"data.path: the token shards in {folder} are unfinished; run the same elas data prepare again, which "
            "makes the missing ones"
        )
    if not (folder / MANIFEST_NAME).is_file():
        raise UserError(
            f"data.path={str(folder)!r} holds no {MANIFEST_NAME}; name a folder that elas data prepare has made"
        )
    return Manifest.read(folder / MANIFEST_NAME)


def open_token_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map a shard into memory; pages are shared by all processes that do.

    Args:
        path: of ``NAME.tokens.npy``.

    Returns:
        ``ids (tokens,)`` and ``offsets (documents + 1,)``.

    Raises:
        OSError: a file is missing or unreadable.
        ValueError: a file is shorter than it says, or the two do not belong together.
    """
    offsets_path = path.with_name(path.name.removesuffix(TOKENS_SUFFIX) + OFFSETS_SUFFIX)
    # plain views: slicing np.memmap itself costs a microsecond more for each document
    with _OPENING:
        ids = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        offsets = np.asarray(np.load(offsets_path, mmap_mode="r", allow_pickle=False))
    if ids.ndim != 1 or offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(ids):
        raise ValueError("its offsets do not fit its ids")
    return ids, offsets


def shard_name(shard: str) -> str:
    """A shard's name without folder and ending, the same for text and for the tokens made of it."""
    return Path(shard).name.removesuffix(TOKENS_SUFFIX).removesuffix(".gz").removesuffix(".json")


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of two types that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


def check_sums(folder: Path, manifest: Manifest) -> list[str]:
    """Compare every file with the checksum noted when it was made; read through all of them.

    Returns:
        Names of the files that differ or are missing.
    """
    wrong = []
    for name, record in manifest.records.items():
        sums = {TOKENS_SUFFIX: record.tokens_sha256, OFFSETS_SUFFIX: record.offsets_sha256}
        for suffix, expected in sums.items():
            path = folder / (name + suffix)
            if not path.is_file() or sha256(path) != expected:
                wrong.append(path.name)
    return wrong


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
