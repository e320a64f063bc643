"""A model as a folder that keeps what it was trained as: low-rank factors, and where its activations are 2:4.

``config.json`` says what the model is and where it came from, ``model.safetensors`` holds its weights under their own
names. ``elas export --form factors`` and ``elas import`` write such folders (with a tokenizer, which is text's side of
it); ``load_model`` and ``elas fit --model.init_from`` read them.
"""

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.nn.config import ModelConfig

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MODEL_TYPE = "elas_lightning"
_VERSION = 1

# what may differ between a folder and the run that starts from it: neither the shapes nor the meaning of a weight
_FREE = ("initialization", "initializer_range", "backend", "ffn_storage", "checkpointing", "sparsity")


def require(package: str) -> Any:
    """A module of a package that only the extra ``export`` installs.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{package.split('.')[0]} is not installed: pip install 'elas-lightning[export]'") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that is there whole or not at all: what is written into the yielded one lies at ``path`` afterwards.

    Args:
        path: Where; it may exist if it is empty.

    Raises:
        UserError: There is something already, or nothing can be made there.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty: give a new folder, or remove this one")
    staged = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}")
    try:
        staged.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written to ({error.strerror}): give another folder") from error
    try:
        yield staged
        for file in staged.iterdir():  # safetensors makes files that only their owner can read
            file.chmod(staged.stat().st_mode & 0o666)
        os.replace(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_model(folder: Path, config: ModelConfig, weights: dict[str, Tensor], **facts: Any) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Args:
        folder: An existing directory.
        config: The model.
        weights: Its ``state_dict``.
        **facts: What else ``config.json`` is to hold, plain types.

    Raises:
        UserError: safetensors is not installed.
    """
    whole = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    require("safetensors.torch").save_file(whole, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    content = {"model_type": MODEL_TYPE, "version": _VERSION, "config": asdict(config), **facts}
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_model_folder(path: Path) -> bool:
    """Whether a directory holds a ``config.json``, of whatever model."""
    return os.path.isfile(path / CONFIG_NAME)  # unlike a Path's own, it is false where a name is too long


def read_facts(folder: Path) -> dict[str, Any]:
    """The whole ``config.json`` of a folder of this project.

    Raises:
        UserError: It cannot be read, or is of another kind of model or a later version.
    """
    path = folder / CONFIG_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): give a folder of `elas export --form factors`"
        ) from error
    if kind != MODEL_TYPE:
        raise UserError(
            f"{folder} holds a model of type {kind!r} and not this project's factors: `elas import {folder} OUT` makes "
            "a folder that can be used here"
        )
    if content.get("version") != _VERSION:
        raise UserError(
            f"{path} is of version {content.get('version')} and this package reads {_VERSION}: use the package "
            "that wrote it"
        )
    return dict(content)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder, in its dtype.

    Raises:
        UserError: The file is missing or torn, or safetensors is not installed.
    """
    safetensors = require("safetensors")
    path = folder / WEIGHTS_NAME
    try:
        weights: dict[str, Tensor] = require("safetensors.torch").load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it is missing or torn; write the folder again"
        ) from error
    return weights


def starting_weights(folder: Path, config: ModelConfig) -> tuple[dict[str, Tensor], str]:
    """The weights of a folder for a model that is to be trained on from them.

    Args:
        folder: Of ``elas export --form factors`` or ``elas import``.
        config: The model to be trained. It may place 2:4 steps of its own and choose its backend, what backward
            keeps and how experts are balanced; all else decides the shape of a weight or what it means, and must agree.

    Returns:
        The weights, and the fingerprint of the tokenizer whose ids they belong to.

    Raises:
        UserError: The folder cannot be read, or it is of another model.
    """
    facts = read_facts(folder)
    theirs = ModelConfig.from_mapping(facts["config"])
    # the balance is of the training loss alone
    theirs = replace(theirs, experts=replace(theirs.experts, balance=config.experts.balance))
    different = [
        f"model.config.{f.name} is {getattr(config, f.name)!r} but {folder} has {getattr(theirs, f.name)!r}"
        for f in fields(ModelConfig)
        if f.name not in _FREE
        and getattr(config, f.name) != getattr(theirs, f.name)
        # several sizes are rounded to one width of an ungated FFN
        and not (f.name == "intermediate_size" and config.ffn_width == theirs.ffn_width)
    ]
    if different:
        raise UserError("; ".join(different) + ": set them as in the folder's config.json")
    return read_weights(folder), facts["tokenizer"]["fingerprint"]
