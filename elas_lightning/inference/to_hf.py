"""A model in the terms of ``transformers``: which of its architectures holds it, and with which weights.

- ``LlamaForCausalLM``: gated, SwiGLU
- ``ArceeForCausalLM``: ungated, squared ReLU

Neither knows factors or the 2:4 step: factors are multiplied out, the step is left off.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.folder import require
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.llama import Llama

_ADVICE = "`--form factors` keeps it"


def architecture(config: ModelConfig) -> str:
    """``Llama`` or ``Arcee``.

    Raises:
        UserError: Neither computes what the model does.
    """
    if config.bottleneck_activation is not None:
        raise UserError(
            f"model.config.bottleneck_activation = {config.bottleneck_activation!r} cannot be exported in merged form: "
            f"with an activation between them factors have no product ({_ADVICE})"
        )
    if config.experts.count > 1:
        raise UserError(
            f"model.config.experts.count = {config.experts.count} cannot be exported in merged form: no stock "
            f"architecture routes as this model does ({_ADVICE})"
        )
    if config.gated:
        return "Llama"
    if config.ffn == "relu2":
        return "Arcee"
    # transformers' Arcee would take another hidden_act, but to its other readers the name is squared ReLU
    raise UserError(
        f"model.config.ffn = {config.ffn!r} cannot be exported in merged form: of ungated FFNs a stock architecture "
        f"exists for squared ReLU alone ({_ADVICE})"
    )


@torch.no_grad()
def merged_weights(model: Llama, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights under the names of ``transformers``, factors multiplied out.

    Args:
        model: What ``architecture`` accepts.
        dtype: Of the result. Products are made in float32 at least and cast afterwards: a product made in bfloat16
            is off by a hundred times the rounding.

    Raises:
        UserError: A layer has no single matrix, or one of its entries has no finite value in ``dtype``.
    """
    merged: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if ".parametrizations" in name:
            continue  # a rule's own tensors; what the layer computes with is its effective weight
        own = dict(module.named_parameters(recurse=False))
        if _is_product(module):
            wide = torch.promote_types(module.A.dtype, torch.float32)
            weight = module.B.to(wide) @ module.A.to(wide)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.RMSNorm):
            weight = module.weight
        elif own:
            raise UserError(
                f"the layer {name} ({type(module).__name__}) cannot be exported in merged form: it is no single matrix "
                f"({_ADVICE})"
            )
        else:
            continue
        weight = weight.detach().to("cpu", dtype)
        if not weight.isfinite().all():
            raise UserError(f"the weights of {name} are not finite in {dtype}: export with --dtype float32")
        merged[f"{name}.weight" if name == "lm_head" else f"model.{name}.weight"] = weight
    return merged


def _is_product(module: nn.Module) -> TypeGuard[LowRankLinear]:
    """Whether a layer is the product of two factors and no subclass that makes something else of them."""
    plain = type(module) is LowRankLinear
    return plain or (isinstance(module, LowRankLinear) and parametrize.is_parametrized(module))


def write_transformers(
    folder: Path, model: Llama, tokenizer: TextTokenizer, sequence_length: int, dtype: torch.dtype
) -> int:
    """Write what ``AutoModelForCausalLM`` and ``AutoTokenizer`` read: configurations, weights, tokenizer.

    Args:
        folder: An existing directory.
        model: On any device.
        tokenizer: Of the model.
        sequence_length: Becomes ``max_position_embeddings``.
        dtype: Of the weights.

    Returns:
        How many numbers the weights are.

    Raises:
        UserError: As ``architecture`` and ``merged_weights``, or transformers is not installed.
    """
    name, weights = architecture(model.config), merged_weights(model, dtype)
    transformers = require("transformers")
    config = getattr(transformers, f"{name}Config")(
        **_config_fields(model.config, tokenizer.end_id, sequence_length), dtype=dtype
    )
    with torch.device("meta"):
        theirs = getattr(transformers, f"{name}ForCausalLM")(config)
    theirs.load_state_dict(weights, assign=True)  # strict: each name, each shape
    # only here and not in the configuration, where an embedding would read it and not learn that row
    theirs.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.end_id, pad_token_id=tokenizer.end_id
    )
    with _without_progress_bars(transformers.utils.logging):
        theirs.save_pretrained(folder)
    _write_tokenizer(folder, tokenizer, sequence_length, transformers)
    return sum(weight.numel() for weight in weights.values())


@contextmanager
def _without_progress_bars(settings: Any) -> Iterator[None]:
    """A bar for a file that is written in a moment is noise on a terminal."""
    shown = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            settings.enable_progress_bar()


def _config_fields(config: ModelConfig, end_id: int, sequence_length: int) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": sequence_length,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": False,
        # the defaults are other models' ids, beyond this one's vocabulary; documents begin without a token
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": None,
    }


def _write_tokenizer(folder: Path, tokenizer: TextTokenizer, sequence_length: int, transformers: Any) -> None:
    definition = _of_the_models_ids(json.loads(tokenizer.definition), tokenizer.vocab_size)
    plain = Tokenizer.from_str(json.dumps(definition))
    end = plain.id_to_token(tokenizer.end_id)
    unknown = {} if tokenizer.unknown_token is None else {"unk_token": tokenizer.unknown_token}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token=end,
        pad_token=end,
        model_max_length=sequence_length,
        clean_up_tokenization_spaces=False,
        **unknown,
    ).save_pretrained(folder)


def _of_the_models_ids(definition: dict[str, Any], size: int) -> dict[str, Any]:
    """A tokenizer that makes no id of ``size`` or above and adds nothing to a text.

    T5's has 100 sentinels that the model has no rows for, and ends every text, also a prompt that is to go on.
    """
    model = definition["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: index for token, index in model["vocab"].items() if index < size}
    else:
        model["vocab"] = model["vocab"][:size]
    added = [token for token in definition["added_tokens"] if token["id"] < size]
    return {**definition, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
