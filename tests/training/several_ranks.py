"""Runs made by two real processes (gloo), many in one start, and what they leave."""

import json
import multiprocessing
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rank_process
import torch
from csv_rows import column_of
from torch import Tensor

from elas_lightning.training.checkpoints import read

DDP = {"trainer.strategy": "ddp", "trainer.devices": 2}
FSDP = {
    "trainer.strategy": {"class_path": "elas_lightning.training.sharding.FullyShardedStrategy"},
    "trainer.devices": 2,
}
FOLDER = {
    "trainer.strategy": {**FSDP["trainer.strategy"], "init_args": {"sharded_checkpoints": True}},  # type: ignore[dict-item]
    "trainer.devices": 2,
}


@dataclass
class Job:
    """A run, and what to do about it.

    Args:
        directory: Of the run.
        overlay: The run's configuration.
        overrides: Dotted keys over it.
        ckpt_path: What to go on from.
        signals: Rank to ``[number, micro-batch]``: the signal that it sends itself there.
        full_disk: Rank whose disk is full from half of the run on.
    """

    directory: str
    overlay: str
    overrides: dict[str, Any] = field(default_factory=dict)
    ckpt_path: str | None = None
    signals: dict[str, list[int]] = field(default_factory=dict)
    full_disk: int | None = None


def environment(ranks: int) -> list[dict[str, str]]:
    """torchrun's variables for each of several processes on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "OMP_NUM_THREADS": "1",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def run_together(folder: Path, jobs: list[Job], ranks: int = 2, seconds: float = 480) -> None:
    """Make runs on several processes; fails when a process fails, or when all of it takes too long."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "jobs.json"
    listed.write_text(json.dumps([asdict(job) for job in jobs]))
    logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["elas_lightning.runner"])
    processes = [
        context.Process(target=rank_process.work, args=(listed, own, log))
        for own, log in zip(environment(ranks), logs, strict=True)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(seconds)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert codes == [0] * ranks, "\n".join(log.read_text()[-3000:] for log in logs)


def curve(directory: Path, column: str) -> list[float]:
    """A column of a run's curve, where it has a value."""
    return column_of(directory / "curve.csv", column)


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of a checkpoint, by name."""
    content = read(checkpoint)
    found = dict(content["state_dict"])
    for number, entries in content["optimizer_states"][0]["state"].items():
        found |= {f"{number}.{key}": value for key, value in entries.items()}
    return found


def differing(one: Path, other: Path) -> Iterator[str]:
    """What two checkpoints do not have in common, bit for bit."""
    mine, theirs = tensors(one), tensors(other)
    yield from mine.keys() ^ theirs.keys()
    yield from (name for name in mine.keys() & theirs.keys() if not torch.equal(mine[name], theirs[name]))
    for part in ("lr_schedulers", "global_step", "C4DataModule"):
        if read(one)[part] != read(other)[part]:
            yield part
