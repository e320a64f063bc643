"""Make token shards: every text shard tokenized once, by several processes, and taken up again where it stopped.

A shard is written beside its place and gets its name, with a record of its contents, when all of it is on disk:
whatever kills the preparation, each shard is whole or absent.
"""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from elas_lightning.data.shards import TextReader
from elas_lightning.data.sources import Source
from elas_lightning.data.tokenizer import TextTokenizer, read_tokenizer
from elas_lightning.data.tokens import (
    MANIFEST_NAME,
    OFFSETS_SUFFIX,
    PLAN_NAME,
    TOKENIZER_NAME,
    TOKENS_SUFFIX,
    Manifest,
    Origin,
    ShardRecord,
    id_dtype,
    sha256,
    shard_name,
)
from elas_lightning.errors import UserError

_READ_TOGETHER = 256
_RECORD_SUFFIX = ".record.json"
_LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Progress:
    """How far a preparation is: shards done of all, documents tokenized by this call."""

    done: int
    shards: int
    documents: int


def prepare(
    source: Source,
    tokenizer: TextTokenizer,
    folder: Path,
    workers: int,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Fill a folder with token shards, or what is missing of them.

    Args:
        source: the text.
        tokenizer: of the runs to come.
        folder: where the shards go.
        workers: processes, each on one shard at a time. They import the script that calls this, which does so behind
            ``if __name__ == "__main__":``.
        report: called twice a second.

    Raises:
        UserError: the folder holds something else, another process fills it, a shard of the text cannot be read, or the
            disk is full.
    """
    plan = _plan(source, tokenizer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK_NAME, timeout=0):
            if not _begin(folder, plan, tokenizer):
                return Manifest.read(folder / MANIFEST_NAME)
            shards = {shard_name(shard): shard for shard in source.train + source.validation}
            _fill(folder, plan, shards, tokenizer.name, workers, report)
            notes = {name: folder / (name + _RECORD_SUFFIX) for name in plan.train + plan.validation}
            records = {name: ShardRecord(**json.loads(note.read_text("utf-8"))) for name, note in notes.items()}
            manifest = replace(plan, records=records)
            _write(folder / MANIFEST_NAME, manifest.as_json())
            (folder / PLAN_NAME).unlink()
            for note in notes.values():
                note.unlink()
    except Timeout as error:
        raise UserError(f"another elas data prepare is filling {folder}; wait for it or stop it") from error
    except OSError as error:
        raise UserError(
            f"the token shards cannot be written into {folder} ({error.strerror or error}); make room or name another "
            "folder with --out, then run the same command again"
        ) from error
    return manifest


def _plan(source: Source, tokenizer: TextTokenizer) -> Manifest:
    if source.tokenizer is not None:
        raise UserError("data.source=tokens is prepared already; give the source of the text")
    origin = Origin(source.name, source.fingerprint, tokenizer.name, tokenizer.fingerprint, tokenizer.vocab_size)
    train, validation = (tuple(map(shard_name, shards)) for shards in (source.train, source.validation))
    return Manifest(origin, train, validation, records={})


def _begin(folder: Path, plan: Manifest, tokenizer: TextTokenizer) -> bool:
    """Write down what is to be made, or compare it with what was begun; False where all of it is there."""
    for name in (PLAN_NAME, MANIFEST_NAME):
        if (folder / name).exists():
            former = Manifest.read(folder / name)
            # a tokenizer keeps its meaning when its file moves, so its name does not count
            same = replace(former.origin, tokenizer=plan.origin.tokenizer) == plan.origin
            if not same or (former.train, former.validation) != (plan.train, plan.validation):
                raise UserError(
                    f"{folder} holds token shards of {_in_words(former.origin)}, not of {_in_words(plan.origin)}; "
                    "name another folder with --out, or delete it"
                )
            if lost := _missing(folder, former):
                raise UserError(
                    f"{folder} has lost {len(lost)} of its files, {lost[0]} among them; put them back, or name another "
                    "folder with --out"
                )
            return name == PLAN_NAME
    # a kill may have come before the plan was written
    ours = (_LOCK_NAME, TOKENIZER_NAME, *map(_unfinished, (TOKENIZER_NAME, PLAN_NAME)))
    if any(path.name not in ours for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no token shards; name another folder with --out")
    _write(folder / TOKENIZER_NAME, tokenizer.definition)
    _write(folder / PLAN_NAME, plan.as_json())
    return True


def _missing(folder: Path, manifest: Manifest) -> list[str]:
    """Files of the shards that were made and are not there."""
    made = [name + suffix for name in manifest.records for suffix in (TOKENS_SUFFIX, OFFSETS_SUFFIX)]
    return [file for file in made if not (folder / file).is_file()]


def _in_words(origin: Origin) -> str:
    return f"{origin.source} {origin.fingerprint} with tokenizer {origin.tokenizer_fingerprint}"


def _fill(
    folder: Path,
    plan: Manifest,
    shards: dict[str, str],
    tokenizer_name: str,
    workers: int,
    report: Callable[[Progress], None],
) -> None:
    missing = [name for name in shards if not (folder / (name + _RECORD_SUFFIX)).exists()]
    # forked by a server, since a fork of this process would inherit the tokenizer's threads as locks that nobody opens;
    # the server imports once for all of them what takes seconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    documents = context.Value("q", 0)
    done = len(shards) - len(missing)
    pool = ProcessPoolExecutor(
        min(workers, max(1, len(missing))),
        context,
        _set_up,
        (folder, tokenizer_name, plan.origin.vocab_size, documents),
    )
    try:
        pending: set[Future[None]] = {pool.submit(_make_shard, shards[name], name) for name in missing}
        while pending:
            finished, pending = wait(pending, timeout=0.5)
            for future in finished:
                future.result()
                done += 1
            report(Progress(done, len(shards), documents.value))
    except BrokenProcessPool as error:
        raise UserError(
            "a process that was tokenizing was killed, perhaps for want of memory; run the same command again, with "
            "fewer --workers"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)


# What follows runs in the processes that tokenize.


@dataclass
class _Task:
    """What a process needs for every shard."""

    folder: Path
    tokenizer: TextTokenizer
    dtype: np.dtype[Any]
    documents: "Synchronized[int]"


_task: _Task | None = None


def _set_up(folder: Path, tokenizer_name: str, vocab_size: int, documents: "Synchronized[int]") -> None:
    global _task
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = read_tokenizer(folder / TOKENIZER_NAME, tokenizer_name)
    _task = _Task(folder, tokenizer, id_dtype(vocab_size), documents)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # it was killed: nobody would ever give this process another shard, or its end


def _make_shard(shard: str, name: str) -> None:
    assert _task is not None
    folder, tokenizer = _task.folder, _task.tokenizer
    reader = TextReader((shard,))
    tokens_path, offsets_path = folder / (name + TOKENS_SUFFIX), folder / (name + OFFSETS_SUFFIX)
    unfinished = folder / _unfinished(name)
    offsets, text_bytes = [0], 0
    with unfinished.open("wb") as file:
        _write_header(file, _task.dtype, 0)
        while texts := reader.read(_READ_TOGETHER):
            documents = tokenizer.encode(texts)
            file.write(np.concatenate(documents).astype(_task.dtype).tobytes())
            for ids, text in zip(documents, texts, strict=True):
                offsets.append(offsets[-1] + len(ids))
                text_bytes += len(text.encode())
            with _task.documents.get_lock():
                _task.documents.value += len(texts)
        file.seek(0)
        _write_header(file, _task.dtype, offsets[-1])
        _to_disk(file)
    unfinished.replace(tokens_path)
    with unfinished.open("wb") as file:
        np.save(file, np.array(offsets, dtype="<i8"), allow_pickle=False)
        _to_disk(file)
    unfinished.replace(offsets_path)
    record = ShardRecord(len(offsets) - 1, offsets[-1], text_bytes, sha256(tokens_path), sha256(offsets_path))
    _write(folder / (name + _RECORD_SUFFIX), json.dumps(asdict(record)))


def _write_header(file: IO[bytes], dtype: np.dtype[Any], length: int) -> None:
    # Its size is the same for every length: the format leaves room for the first dimension to grow.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(_unfinished(path.name))
    with unfinished.open("wb") as file:
        file.write(text.encode("utf-8"))
        _to_disk(file)
    unfinished.replace(path)


def _unfinished(name: str) -> str:
    """How a file is called while it is written."""
    return f".{name}.unfinished"


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
