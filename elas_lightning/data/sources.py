"""Where the text comes from: each source is a name, a fingerprint and two lists of C4-format shards."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elas_lightning.data import pydocs
from elas_lightning.errors import UserError

SourceName = Literal["pydocs", "c4", "local"]

C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
_C4_SHARDS = {"train": 1024, "validation": 8}


@dataclass(frozen=True)
class Source:
    """A corpus as lists of files.

    Args:
        name: which kind of source.
        fingerprint: equal fingerprints mean equal text.
        train: paths or ``hf://`` addresses of the training shards, in their canonical order.
        validation: the same of the validation shards.
    """

    name: SourceName
    fingerprint: str
    train: tuple[str, ...]
    validation: tuple[str, ...]


def open_source(name: SourceName, path: str | None, revision: str | None, cache: Path) -> Source:
    """Find the shards of a source; ``pydocs`` extracts its corpus on first use.

    Args:
        name: which source.
        path: folder of the shards (``local`` only).
        revision: commit of ``allenai/c4`` (``c4`` only); None for the one this project pins.
        cache: the cache folder.

    Raises:
        UserError: an option that the source does not take or lacks, a missing folder, no shards in it.
    """
    if name != "local" and path is not None:
        raise UserError(
            f"data.path={path!r} is only read with data.source=local, but data.source={name}; remove one"
        )
    if name != "c4" and revision is not None:
        raise UserError(f"data.revision={revision!r} is only read with data.source=c4, not {name}; remove it")
    if name == "pydocs":
        corpus = pydocs.ensure_corpus(cache)
        fingerprint = str(pydocs.manifest(corpus)["fingerprint"])
        return Source(name, fingerprint, _shards_in(corpus, "train"), _shards_in(corpus, "validation"))
    if name == "c4":
        commit = revision or C4_REVISION
        shards = {
            split: tuple(
                f"hf://datasets/allenai/c4@{commit}/en/c4-{split}.{i:05d}-of-{count:05d}.json.gz"
                for i in range(count)
            )
            for split, count in _C4_SHARDS.items()
        }
        return Source(name, f"allenai/c4/en@{commit}", shards["train"], shards["validation"])
    if path is None:
        raise UserError(
            "data.path is not set; data.source=local needs the folder of the c4-train.*.json.gz shards"
        )
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(
            f"data.path={path!r} is not a folder; name the one that holds the c4-train.*.json.gz shards"
        )
    train, validation = _shards_in(folder, "train"), _shards_in(folder, "validation")
    return Source(name, _fingerprint_of_files(train + validation), train, validation)


def _shards_in(folder: Path, split: str) -> tuple[str, ...]:
    shards = tuple(str(file) for file in sorted(folder.glob(f"c4-{split}.*.json.gz")))
    if not shards:
        raise UserError(
            f"data.path: no file in {folder} is named c4-{split}.*.json.gz; both splits are needed, named as "
            "in allenai/c4 on the hub"
        )
    return shards


def _fingerprint_of_files(files: tuple[str, ...]) -> str:
    # Names and sizes only: all of C4 is 300 GB, and reading it to name it would take longer than training.
    listing = "\n".join(f"{Path(file).name} {Path(file).stat().st_size}" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
