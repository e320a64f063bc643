"""From a checkpoint to a model that can be used: its weights, its tokenizer, and what is known of its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elas_lightning.configuration import CHECKPOINT_NAME
from elas_lightning.data.module import C4DataModule
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.runner import RESULT_NAME, RunResult, check_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A model out of a checkpoint.

    Args:
        model: In evaluation mode, its 2:4 sites as they were at the checkpoint's step.
        tokenizer: The one it was trained with.
        step: Optimizer steps taken.
        data: The arguments of the run's ``C4DataModule``.
        result: The run's result file, ``None`` where the run has not ended.
        path: The checkpoint.
    """

    model: Llama
    tokenizer: TextTokenizer
    step: int
    data: dict[str, Any]
    result: RunResult | None
    path: Path


def load_model(path: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """Load a model for use.

    Args:
        path: A ``*.ckpt`` file, or the directory of a run that still has one.
        device: Where the weights go.

    Raises:
        UserError: There is no checkpoint, it cannot be read, or its tokenizer cannot be had.
    """
    checkpoint_path = _checkpoint_of(Path(path))
    check_checkpoint(checkpoint_path)
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
    try:
        config = ModelConfig.from_mapping(checkpoint["hyper_parameters"]["config"])
        data = dict(checkpoint["datamodule_hyper_parameters"])
        step = int(checkpoint["global_step"])
        prefix = "model."
        weights = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
    except KeyError as error:
        raise UserError(
            f"the checkpoint {checkpoint_path} has no {error}: it was not written by this version of elas fit"
        ) from error
    with torch.device("meta"):
        model = Llama(config)
    model.load_state_dict(weights, assign=True)
    model.set_sparsity(step >= config.sparsity.dense_warmup_steps)
    return TrainedModel(
        model=model.to(device).eval(),
        tokenizer=C4DataModule(**data).text_tokenizer,
        step=step,
        data=data,
        result=_result_beside(checkpoint_path),
        path=checkpoint_path,
    )


def _checkpoint_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    inside = path / "checkpoints" / f"{CHECKPOINT_NAME}.ckpt"
    if not inside.is_file():
        raise UserError(
            f"there is no checkpoint in {path}: give the directory of a run of `elas fit`, or a *.ckpt file "
            "(a sweep removes the checkpoints of finished runs)"
        )
    return inside


def _result_beside(checkpoint: Path) -> RunResult | None:
    directory = checkpoint.parent.parent
    return RunResult.read(directory) if (directory / RESULT_NAME).is_file() else None
