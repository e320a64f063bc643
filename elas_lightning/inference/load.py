"""From a checkpoint or a folder to a model that can be used: its weights, its tokenizer, what is known of its run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from elas_lightning.continuation import checkpoint_of
from elas_lightning.data.module import C4DataModule
from elas_lightning.data.tokenizer import TextTokenizer, read_tokenizer
from elas_lightning.errors import UserError
from elas_lightning.layout import RESULT_NAME
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.folder import is_model_folder, read_facts, read_weights
from elas_lightning.nn.llama import Llama
from elas_lightning.result import RunResult
from elas_lightning.training.checkpoints import read, verify

TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True)
class TrainedModel:
    """A model out of a checkpoint or a folder.

    Args:
        model: In evaluation mode, its 2:4 sites as they were at the checkpoint's step.
        tokenizer: The one it was trained with.
        step: Optimizer steps taken.
        data: The arguments of the run's ``C4DataModule``; for an imported model, which has no run, its
            ``sequence_length`` alone.
        result: The run's result file, ``None`` where the run has not ended or there was none.
        path: The checkpoint or the folder.
    """

    model: Llama
    tokenizer: TextTokenizer
    step: int
    data: dict[str, Any]
    result: RunResult | None
    path: Path

    @property
    def sequence_length(self) -> int:
        """Positions that the model was trained on at once; further ones are beyond its experience."""
        return int(self.data["sequence_length"])

    @property
    def directory(self) -> Path:
        """Where the run's other files lie, if they are still there."""
        # a sharded checkpoint is a folder, too
        return self.path if is_model_folder(self.path) else self.path.parent.parent


def load_model(path: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """Load a model for use.

    Args:
        path: A ``*.ckpt`` file, the directory of a run that still has one (the newest is taken), or a folder that
            ``elas export --form factors`` or ``elas import`` wrote.
        device: Where the weights go.

    Raises:
        UserError: There is no model, it cannot be read, its tokenizer cannot be had, or there is no such device.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without the device
        raise UserError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    path = Path(path)
    return _load_folder(path, device) if is_model_folder(path) else _load_checkpoint(path, device)


def _load_checkpoint(path: Path, device: str | torch.device) -> TrainedModel:
    checkpoint_path = checkpoint_of(path, ", a folder of `elas export --form factors`")
    verify(checkpoint_path)
    checkpoint = read(checkpoint_path, mmap=True)
    try:
        config = ModelConfig.from_mapping(checkpoint["hyper_parameters"]["config"])
        data = dict(checkpoint["datamodule_hyper_parameters"])
        step = int(checkpoint["global_step"])
        trained_with = checkpoint[C4DataModule.__qualname__]["signature"]["tokenizer"]
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
    tokenizer = C4DataModule(**data).text_tokenizer
    if tokenizer.fingerprint != trained_with:
        raise UserError(
            f"the checkpoint {checkpoint_path} was trained with another tokenizer than data.tokenizer="
            f"{data['tokenizer']!r} gives here, so its ids would mean other text: put the file back, or for pydocs "
            "install the package versions of the run"
        )
    return TrainedModel(
        model=_in_use(config, weights, step, device),
        tokenizer=tokenizer,
        step=step,
        data=data,
        result=_result_in(checkpoint_path.parent.parent),
        path=checkpoint_path,
    )


def _load_folder(folder: Path, device: str | torch.device) -> TrainedModel:
    facts = read_facts(folder)
    return TrainedModel(
        model=_in_use(ModelConfig.from_mapping(facts["config"]), read_weights(folder), facts["step"], device),
        tokenizer=read_tokenizer(folder / TOKENIZER_NAME, facts["tokenizer"]["name"]),
        step=facts["step"],
        data=facts["data"],
        result=_result_in(folder),
        path=folder,
    )


def assemble(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Llama:
    """A model around given weights, in their dtype, without filling others first.

    Raises:
        UserError: They are not the weights of such a model.
    """
    with torch.device("meta"):
        model = Llama(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit their configuration: {error}") from error
    return model


def _in_use(config: ModelConfig, weights: dict[str, torch.Tensor], step: int, device: str | torch.device) -> Llama:
    # a backend suits the machine and the precision of training, and there may be neither here
    model = assemble(replace(config, backend="auto"), weights)
    model.set_sparsity(step >= config.sparsity.dense_warmup_steps)
    return model.to(device).eval()


def _result_in(directory: Path) -> RunResult | None:
    return RunResult.read(directory) if (directory / RESULT_NAME).is_file() else None
