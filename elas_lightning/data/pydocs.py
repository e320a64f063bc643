"""The corpus of every machine: the English documentation of the packages this project depends on.

Real prose with long-range structure, some 25 MB of it, without a network: enough to train small models and to
compare methods. It is written in the form of C4 (gzipped JSON lines with text, timestamp and url), so that
everything downstream of the files is the code that reads C4.
"""

import gzip
import hashlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from elas_lightning.data import docstrings
from elas_lightning.data.cache import build_once
from elas_lightning.errors import UserError

# Only packages that come with every installation (never an extra), so that machines with equal versions have
# equal corpora: import name -> name of the distribution.
PACKAGES = {
    "torch": "torch",
    "sympy": "sympy",
    "pandas": "pandas",
    "numpy": "numpy",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "sqlalchemy": "SQLAlchemy",
    "networkx": "networkx",
    "torchmetrics": "torchmetrics",
    "datasets": "datasets",
    "lightning": "lightning",
    "optuna": "optuna",
}
EXTRACTOR_VERSION = 1  # raise it when the same packages would give other documents
TRAIN_SHARDS = 16
VALIDATION_PERCENT = 5
MINIMUM_CHARACTERS = 200  # shorter ones are mostly "See help(type(self))"
TIMESTAMP = "1970-01-01T00:00:00Z"  # C4 has the field; a constant keeps equal inputs equal bytes

_log = logging.getLogger(__name__)
_SPACE = re.compile(r"\s+")


def ensure_corpus(root: Path) -> Path:
    """Return the folder with the corpus's shards and ``manifest.json``, extracting it first if need be.

    Args:
        root: the cache folder.

    Raises:
        UserError: a package the corpus is made of is not installed.
    """
    versions = _versions()
    key = hashlib.sha256(json.dumps([EXTRACTOR_VERSION, versions], sort_keys=True).encode()).hexdigest()[:16]
    return build_once(root / "pydocs" / key, lambda folder: _write_corpus(folder, versions))


def manifest(corpus: Path) -> dict[str, Any]:
    """What ``ensure_corpus`` noted down: ``fingerprint``, ``versions``, documents and characters by split."""
    content: dict[str, Any] = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    return content


def _versions() -> dict[str, str]:
    versions = {}
    for package, distribution in PACKAGES.items():
        try:
            versions[package] = metadata.version(distribution)
        except metadata.PackageNotFoundError as error:
            raise UserError(
                f"data.source=pydocs: {distribution} is not installed, and its documentation is part of the "
                "corpus; install the project with all its dependencies (make setup)"
            ) from error
    return versions


def _write_corpus(folder: Path, versions: dict[str, str]) -> None:
    _log.info("pydocs: extracting the documentation of %d packages (once)", len(PACKAGES))
    documents: dict[str, dict[str, str]] = {}
    for url, text in _extract():
        # A lone surrogate (a docstring may show one off) has no UTF-8 form, and every tokenizer wants one.
        text = text.encode("utf-8", "replace").decode("utf-8")
        if len(text) < MINIMUM_CHARACTERS:
            continue
        digest = hashlib.sha256(_SPACE.sub(" ", text).strip().lower().encode("utf-8")).hexdigest()
        # Of equal documents the one with the first url stays: the extractors answer in no particular order.
        if digest not in documents or url < documents[digest]["url"]:
            documents[digest] = {"text": text, "timestamp": TIMESTAMP, "url": url}
    # Sorting by hash is a shuffle that every machine agrees on; the split takes other bits of the same hash.
    ordered = sorted(documents)
    validation = [d for d in ordered if int(d[-8:], 16) % 100 < VALIDATION_PERCENT]
    train = sorted(set(ordered).difference(validation))
    splits = {"train": train, "validation": validation}
    for split, shards in (("train", TRAIN_SHARDS), ("validation", 1)):
        for shard in range(shards):
            path = folder / f"c4-{split}.{shard:05d}-of-{shards:05d}.json.gz"
            _write_shard(path, [documents[d] for d in splits[split][shard::shards]])
    # Of the text itself, so that equal fingerprints mean equal data whatever made it.
    fingerprint = hashlib.sha256("\0".join(documents[d]["text"] for d in ordered).encode()).hexdigest()
    content = {
        "fingerprint": fingerprint[:16],
        "versions": versions,
        "documents": {split: len(digests) for split, digests in splits.items()},
        "characters": {split: sum(len(documents[d]["text"]) for d in digests) for split, digests in splits.items()},
    }
    (folder / "manifest.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _write_shard(path: Path, records: list[dict[str, str]]) -> None:
    # mtime=0: the same documents give the same file, byte for byte.
    with gzip.GzipFile(path, "wb", compresslevel=6, mtime=0) as file:
        for record in records:
            file.write(json.dumps(record).encode() + b"\n")


def _extract() -> Iterator[tuple[str, str]]:
    """Yield ``(url, text)`` of every docstring, from one extracting process a core."""
    lines = [f"{package}\t{module}\t{path}\n" for package in PACKAGES for module, path in _modules(package)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, 16)
    processes = [
        subprocess.Popen(
            [sys.executable, "-I", docstrings.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(cores)
    ]
    try:
        for rank, process in enumerate(processes):
            # Every pipe is fed by its own thread: a pipe holds 64 KiB, and both sides would wait for ever.
            threading.Thread(target=_feed, args=(process, lines[rank::cores]), daemon=True).start()
        with tqdm(total=len(lines), desc="pydocs", unit="file", disable=None) as progress:
            for process in processes:
                assert process.stdout is not None
                for answer in process.stdout:
                    progress.update()
                    yield from json.loads(answer)["documents"]
                if process.wait() != 0:
                    raise RuntimeError(f"the docstring extractor ended with code {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _feed(process: "subprocess.Popen[str]", lines: list[str]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.writelines(lines)
        process.stdin.close()
    except BrokenPipeError:
        pass  # the extractor died; its exit code says so to the reader


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    if spec is None or spec.origin is None:
        raise UserError(f"data.source=pydocs: the package {package} has no files; reinstall it")
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if "tests" not in parts:  # tests are documented by code, not prose
            yield ".".join(parts).removesuffix(".__init__"), path
