"""One of several processes that make runs together: ``python rank_process.py JOBS.json``, with torchrun's variables set.

The jobs are made one after another in one process group, since most of what a process costs is its start.
"""

import json
import sys
from pathlib import Path

import torch

from elas_lightning.configuration import ElasCLI, command_line, quiet_lightning
from elas_lightning.errors import UserError
from elas_lightning.runner import execute


def make(job: dict) -> None:
    directory = Path(job["directory"])
    own = {**job["overrides"], "trainer.default_root_dir": str(directory)}
    cli = ElasCLI(command_line([Path(job["overlay"])], own), run=False)
    try:
        execute(cli, ckpt_path=job["ckpt_path"])
    except UserError as error:
        (directory / f"refused.{cli.trainer.global_rank}").write_text(str(error))
        return
    if job["save"]:
        cli.trainer.save_checkpoint(directory / "end.ckpt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    quiet_lightning()
    for each in json.loads(Path(sys.argv[1]).read_text()):
        make(each)
