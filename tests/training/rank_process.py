"""One of several processes that make runs together, forked by a server that has imported everything.

The jobs are made one after another in one process group, since most of what a process costs is its start.
"""

import errno
import json
import multiprocessing
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

from elas_lightning.configuration import ElasCLI, command_line, quiet_lightning
from elas_lightning.errors import UserError
from elas_lightning.runner import execute
from elas_lightning.training.interruption import Interrupted


class _Faults(Callback):
    """Does to its process what the job says, in the middle of a step."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.signals: dict[str, list[int]] = job["signals"]
        self.full_disk: int | None = job["full_disk"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number, at_batch = self.signals.get(str(trainer.global_rank), (0, -1))
        if batch_idx == at_batch:
            os.kill(os.getpid(), number)
        if self.full_disk == trainer.global_rank and batch_idx == trainer.max_steps // 2:
            no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            mock.patch.object(os, "fsync", side_effect=no_space).start()


def make(job: dict[str, Any]) -> None:
    directory = Path(job["directory"])
    own = {**job["overrides"], "trainer.default_root_dir": str(directory)}
    cli = ElasCLI(command_line([Path(job["overlay"])], own), run=False, callbacks=[_Faults(job)])
    try:
        execute(cli, ckpt_path=job["ckpt_path"])
    except Interrupted as stop:
        (directory / f"stopped.{cli.trainer.global_rank}").write_text(str(stop.signal_number))
    except UserError as error:
        (directory / f"refused.{cli.trainer.global_rank}").write_text(str(error))
    finally:
        mock.patch.stopall()


def work(jobs: Path, environment: dict[str, str], log: Path) -> None:
    """Make the jobs of a file.

    Args:
        jobs: The file.
        environment: torchrun's variables.
        log: For what is printed, by libraries and their threads as well.
    """
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    multiprocessing.set_start_method("fork", force=True)  # loader workers, as in a process of torchrun's
    torch.set_num_threads(1)
    quiet_lightning()
    # a process that waits for one that has died gives up soon
    distributed.init_process_group("gloo", timeout=timedelta(minutes=3))
    for each in json.loads(jobs.read_text()):
        make(each)
    distributed.destroy_process_group()
