"""``elas export``: a trained model as a folder that others can use, with a card that says what it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from elas_lightning.errors import UserError
from elas_lightning.inference.card import seeds_beside, write_card
from elas_lightning.inference.load import TOKENIZER_NAME, TrainedModel
from elas_lightning.inference.mask_effect import MaskEffect, measure_mask_effect
from elas_lightning.inference.to_hf import architecture, write_transformers
from elas_lightning.nn.folder import is_model_folder, new_folder, read_facts, write_model

Form = Literal["merged", "factors"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Args:
        folder: Where it lies.
        what: In words: the architecture, or that the factors were kept.
        effect: What leaving off the 2:4 step does to perplexity; why that was not measured; None without the step.
    """

    folder: Path
    what: str
    effect: MaskEffect | str | None


def export_model(
    trained: TrainedModel,
    folder: str | Path,
    *,
    form: Form = "merged",
    dtype: str = "float32",
    eval_tokens: int = 100_000,
) -> Exported:
    """Write a model as a folder.

    Args:
        trained: What to export.
        folder: Where; new or empty.
        form: ``merged``: for ``transformers``, factors multiplied out and the 2:4 step left off. ``factors``: for this
            package, exactly as trained.
        dtype: Of the weights: a key of ``DTYPES``.
        eval_tokens: Validation tokens on which to measure what leaving off the 2:4 step does; 0 measures nothing.

    Raises:
        UserError: The form cannot hold the model, the folder is taken, a package is missing.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not possible: choose one of {', '.join(DTYPES)}")
    if form not in ("merged", "factors"):
        raise UserError(f"--form {form} is not possible: choose merged or factors")
    if eval_tokens < 0:
        raise UserError(f"--eval-tokens {eval_tokens} is not possible: give 0 to measure nothing, or more")
    name = architecture(trained.model.config) if form == "merged" else None
    with new_folder(folder) as staged:
        # where an imported model comes from
        origin = read_facts(trained.path)["origin"] if is_model_folder(trained.path) else None
        if name:
            numbers = write_transformers(
                staged, trained.model, trained.tokenizer, trained.sequence_length, DTYPES[dtype]
            )
        else:
            numbers = write_factors(staged, trained, DTYPES[dtype], origin)
        effect = _effect(trained, eval_tokens)
        write_card(
            staged,
            folder.absolute().name,
            trained,
            merged=name,
            dtype=dtype,
            exported_parameters=numbers,
            effect=effect,
            seeds=seeds_beside(trained.directory, trained.result) if trained.result else None,
            origin=origin,
        )
    return Exported(folder, f"{name}ForCausalLM" if name else "factors kept", effect)


def write_factors(folder: Path, trained: TrainedModel, dtype: torch.dtype, origin: dict[str, Any] | None) -> int:
    """Write what ``load_model`` reads: configuration, weights, tokenizer and the run's result.

    Args:
        folder: An existing directory.
        trained: What to write.
        dtype: Of the weights; that of the model changes nothing.
        origin: Where an imported model comes from, plain types.

    Returns:
        How many numbers the weights are.

    Raises:
        UserError: A weight has no finite value in ``dtype``, or safetensors is not installed.
    """
    # masks, indices and seeds of the weights' rules are no numbers to round
    weights = {
        name: weight.to(dtype) if weight.is_floating_point() else weight
        for name, weight in trained.model.state_dict().items()
    }
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"the weights of {name} are not finite in {dtype}: export with --dtype float32")
    data = {key: value for key, value in trained.data.items() if key != "cache_dir"}  # this machine's own
    tokenizer = {"name": trained.tokenizer.name, "fingerprint": trained.tokenizer.fingerprint}
    write_model(folder, trained.model.config, weights, step=trained.step, data=data, tokenizer=tokenizer, origin=origin)
    (folder / TOKENIZER_NAME).write_text(trained.tokenizer.definition, encoding="utf-8")
    if trained.result is not None:
        trained.result.write(folder)
    return sum(weight.numel() for weight in weights.values())


def _effect(trained: TrainedModel, tokens: int) -> MaskEffect | str | None:
    if not trained.model.sparsity_active:
        return None
    if tokens == 0:
        return "it was not asked for (--eval-tokens 0)"
    try:
        return measure_mask_effect(trained, tokens)
    except UserError as error:
        return " ".join(str(error).split())
