"""Runs made by two real processes (gloo), many in one start."""

import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("rank_process.py")
SHARDED = {"class_path": "elas_lightning.training.sharding.FullyShardedStrategy"}


@dataclass
class Job:
    """A run, and what to do about its end."""

    directory: str
    overlay: str
    overrides: dict[str, Any] = field(default_factory=dict)
    ckpt_path: str | None = None
    save: bool = False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_together(folder: Path, jobs: list[Job], ranks: int = 2, seconds: float = 240) -> None:
    """Make runs on several processes; fails when one fails or when they take too long."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "jobs.json"
    listed.write_text(json.dumps([asdict(job) for job in jobs]))
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
    }
    logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
    processes = []
    for rank in range(ranks):
        with logs[rank].open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(listed)],
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks, "\n".join(log.read_text()[-3000:] for log in logs)


def curve(directory: Path) -> list[dict[str, str]]:
    with (directory / "curve.csv").open() as file:
        return list(csv.DictReader(file))


def losses(directory: Path) -> list[float]:
    return [float(row["train_loss"]) for row in curve(directory) if row["train_loss"]]
