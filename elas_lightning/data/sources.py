"""Where the text comes from: each source is a name, a fingerprint and two lists of shards."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from elas_lightning.data import pydocs
from elas_lightning.data.tokens import TOKENIZER_NAME, TOKENS_SUFFIX, open_manifest, shard_name
from elas_lightning.errors import UserError

SourceName = Literal["pydocs", "c4", "local", "tokens"]

C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
_C4_SHARDS = {"train": 1024, "validation": 8}


@dataclass(frozen=True)
class Source:
    """A corpus as lists of files.

    Token shards have name and fingerprint of the text they were made of: they give the same documents.

    Args:
        name: which kind of source.
        fingerprint: equal fingerprints mean equal text.
        train: paths or ``hf://`` addresses of the training shards, in their canonical order.
        validation: the same of the validation shards.
        tokenizer: of token shards, its file and name; None for text.
        files: name and size of every file of ``local`` text, of which its fingerprint is made.
    """

    name: str
    fingerprint: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    tokenizer: tuple[Path, str] | None = None
    files: dict[str, int] = field(default_factory=dict)


def open_source(name: SourceName, path: str | None, revision: str | None, cache: Path) -> Source:
    """Find the shards of a source; ``pydocs`` extracts its corpus on first use.

    Args:
        name: which source.
        path: folder of the shards (``local`` and ``tokens`` only).
        revision: commit of ``allenai/c4`` (``c4`` only); None for the one this project pins.
        cache: the cache folder.

    Raises:
        UserError: an option that the source does not take or lacks, a missing folder, no shards in it.
    """
    if name not in ("local", "tokens") and path is not None:
        raise UserError(
            f"data.path={path!r} is only read with data.source=local or tokens, but data.source={name}; remove one"
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
                f"hf://datasets/allenai/c4@{commit}/en/c4-{split}.{i:05d}-of-{count:05d}.json.gz" for i in range(count)
            )
            for split, count in _C4_SHARDS.items()
        }
        return Source(name, f"allenai/c4/en@{commit}", shards["train"], shards["validation"])
    wanted = "that elas data prepare has made" if name == "tokens" else "of the c4-train.*.json.gz shards"
    if path is None:
        raise UserError(f"data.path is not set; data.source={name} needs the folder {wanted}")
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"data.path={path!r} is not a folder; name the one {wanted}")
    if name == "tokens":
        return _token_shards(folder)
    train, validation = _shards_in(folder, "train"), _shards_in(folder, "validation")
    # Names and sizes only: all of C4 is 300 GB, and reading it to name it would take longer than training.
    files = {Path(file).name: _size(file) for file in train + validation}
    return Source(name, _fingerprint_of(files), train, validation, files=files)


def as_it_was(corpus: Source, files: dict[str, int], skipped: Collection[str]) -> Source:
    """A corpus as a checkpoint knew it, where it has since lost nothing but shards that are to be skipped.

    Args:
        corpus: as it is now.
        files: ``Source.files`` as the checkpoint holds them.
        skipped: names of the shards whose damage is known, which may have been replaced, too.

    Returns:
        The corpus with the former list of training shards; as it is where it differs in any other way.
    """
    changed = {file for file, size in files.items() if corpus.files.get(file) != size}
    others = {file for file in changed if file in corpus.files and shard_name(file) not in skipped}
    known = {Path(shard).name for shard in corpus.validation}
    if not changed or others or changed & known or not corpus.files.keys() <= files.keys():
        return corpus
    folder = Path(corpus.train[0]).parent
    train = tuple(str(folder / file) for file in files if file not in known)
    return Source(corpus.name, _fingerprint_of(files), train, corpus.validation, files=files)


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError as error:  # a link to a file that is gone
        raise UserError(
            f"data.path: the shard {file} cannot be read ({error.strerror}); put a good copy in its place, or remove it"
        ) from error


def _fingerprint_of(files: dict[str, int]) -> str:
    listing = "\n".join(f"{file} {size}" for file, size in files.items())
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _token_shards(folder: Path) -> Source:
    manifest = open_manifest(folder)
    origin = manifest.origin
    train, validation = (
        tuple(str(folder / (name + TOKENS_SUFFIX)) for name in names) for names in (manifest.train, manifest.validation)
    )
    tokenizer = (folder / TOKENIZER_NAME, origin.tokenizer)
    return Source(origin.source, origin.fingerprint, train, validation, tokenizer)


def _shards_in(folder: Path, split: str) -> tuple[str, ...]:
    shards = tuple(str(file) for file in sorted(folder.glob(f"c4-{split}.*.json.gz")))
    if not shards:
        raise UserError(
            f"data.path: no file in {folder} is named c4-{split}.*.json.gz; both splits are needed, named as "
            "in allenai/c4 on the hub"
        )
    return shards
