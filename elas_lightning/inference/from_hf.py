"""``elas import``: a Llama or Arcee checkpoint of Hugging Face as a model of this project, at full or at low rank.

At low rank every matrix of a block becomes the product of two factors by a truncated singular value decomposition: of
all matrices of that rank the closest (Eckart & Young, 1936). What is lost is said layer by layer.

Shape suffixes: I input features, O output features, K singular values, R rank.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from elas_lightning.data.tokenizer import TextTokenizer, read_tokenizer
from elas_lightning.errors import UserError
from elas_lightning.inference.card import write_card
from elas_lightning.inference.export import write_factors
from elas_lightning.inference.load import TOKENIZER_NAME, TrainedModel, assemble
from elas_lightning.nn.checks import is_int, is_number
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.folder import CONFIG_NAME, WEIGHTS_NAME, new_folder, require

_ACTIVATIONS = {"llama": "silu", "arcee": "relu2"}
_REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
    "max_position_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class KeptLayer:
    """A matrix after truncation.

    Args:
        name: Of the layer.
        kept_energy: Share of the sum of squared singular values that the factors keep; 1 loses nothing.
    """

    name: str
    kept_energy: float


@dataclass(frozen=True)
class Imported:
    """What an import came to.

    Args:
        folder: Where it lies.
        layers: Each truncated matrix in the model's order; empty at full rank.
        notes: What a user should know, a sentence each.
    """

    folder: Path
    layers: list[KeptLayer]
    notes: list[str]


def import_model(
    source: str | Path, folder: str | Path, *, rank: int | None = None, tokenizer: str | Path | None = None
) -> Imported:
    """Write a checkpoint of Hugging Face as a folder of factors, in float32.

    Key and value heads that several queries share are repeated, and a head tied to the embedding is copied: both
    compute the same as before, with more parameters.

    Args:
        source: A local folder with ``config.json``, safetensors and, unless it is given apart, ``tokenizer.json``.
        folder: Where to write; new or empty.
        rank: Of every matrix of attention and feed-forward networks; None keeps full rank.
        tokenizer: A ``tokenizer.json`` from elsewhere.

    Raises:
        UserError: The checkpoint cannot be read, or is of a kind that this project's model cannot hold.
    """
    source, folder = Path(source), Path(folder)
    theirs = _read_config(source)
    config = _model_config(theirs, rank)
    tokenizer_path = Path(tokenizer) if tokenizer else source / TOKENIZER_NAME
    text = _read_tokenizer(tokenizer_path, source.absolute().name, config.vocab_size)
    notes = _notes(theirs, text, tokenizer_path)
    weights = _read_weights(source)
    _ungroup(weights, theirs)
    notes += _untie(weights, theirs)
    layers = _truncate(weights, rank) if rank is not None else []
    trained = TrainedModel(
        model=assemble(config, weights),
        tokenizer=text,
        step=0,
        data={"sequence_length": int(theirs["max_position_embeddings"])},
        result=None,
        path=folder,
    )
    origin = {
        "source": source.absolute().name,
        "architecture": theirs["model_type"],
        "rank": rank,
        "notes": notes,
        "layers": [asdict(layer) for layer in layers],
    }
    with new_folder(folder) as staged:
        numbers = write_factors(staged, trained, torch.float32, origin)
        name = folder.absolute().name
        write_card(staged, name, trained, dtype="float32", exported_parameters=numbers, origin=origin)
    return Imported(folder, layers, notes)


def _read_tokenizer(path: Path, name: str, rows: int) -> TextTokenizer:
    if not path.is_file():
        raise UserError(f"there is no {path}: give the model's tokenizer.json as --tokenizer")
    try:
        tokenizer = read_tokenizer(path, name)
    except UserError as error:
        raise UserError(f"{path}: {error}, or give another as --tokenizer") from error
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer {path} has {tokenizer.vocab_size} ids and the model rows for {rows}: "
            "give the model's own as --tokenizer"
        )
    return tokenizer


def _read_config(source: Path) -> dict[str, Any]:
    path = source / CONFIG_NAME
    try:
        theirs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = theirs.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): give a local folder of a Hugging Face model"
        ) from error
    if kind not in _ACTIVATIONS:
        raise UserError(f"{source} holds a model of type {kind!r}: only llama and arcee can be imported")
    if missing := [key for key in _REQUIRED if not is_number(theirs.get(key)) or theirs[key] <= 0]:
        raise UserError(f"{path} lacks a number above 0 as {', '.join(missing)}: it is no complete configuration")
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    groups = theirs.get("num_key_value_heads") or heads
    rope = _rope(theirs)
    scaling = rope.get("rope_type", rope.get("type", "default"))
    for key, fine, why in (
        ("hidden_act", theirs.get("hidden_act", _ACTIVATIONS[kind]) == _ACTIVATIONS[kind],
         f"{kind} has {_ACTIVATIONS[kind]} here"),
        ("attention_bias", not theirs.get("attention_bias"), "this project's layers have no biases"),
        ("mlp_bias", not theirs.get("mlp_bias"), "this project's layers have no biases"),
        ("head_dim", (theirs.get("head_dim") or width // heads) * heads == width, "it must be hidden_size / heads"),
        ("rope_scaling" if theirs.get("rope_scaling") else "rope_parameters", scaling == "default",
         "rotary frequencies are not scaled here"),
        ("num_key_value_heads", is_int(groups) and groups > 0 and heads % groups == 0, "it must divide the heads"),
        ("intermediate_size", kind == "llama" or theirs["intermediate_size"] % 16 == 0,
         "an ungated width must be a multiple of 16"),
    ):  # fmt: skip
        if not fine:
            raise UserError(f"{path} has {key} = {theirs.get(key)!r}, which cannot be imported: {why}")
    return theirs


def _rope(theirs: dict[str, Any]) -> dict[str, Any]:
    """What is said of rotary embedding; of the two names for it the older one wins, as in ``transformers``."""
    given = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    return given if isinstance(given, dict) else {"rope_type": None}


def _model_config(theirs: dict[str, Any], rank: int | None) -> ModelConfig:
    gated, width = theirs["model_type"] == "llama", theirs["intermediate_size"]
    largest = min(theirs["hidden_size"], width)
    if rank is not None and not 1 <= rank <= largest:
        raise UserError(f"--rank {rank} is not possible: give 1 to {largest}, or leave it out for full rank")
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=theirs["hidden_size"],
        # an ungated FFN is ModelConfig.ffn_width wide, 1.5 times this and rounded up to a multiple of 16
        intermediate_size=width if gated else 2 * width // 3,
        num_layers=theirs["num_hidden_layers"],
        num_heads=theirs["num_attention_heads"],
        attention_rank=rank,
        ffn_rank=rank,
        ffn="swiglu" if gated else "relu2",
        norm_eps=theirs["rms_norm_eps"],
        # Llama's first configurations had no such key
        rope_theta=float(_rope(theirs).get("rope_theta") or theirs.get("rope_theta") or 10000.0),
    )


def _notes(theirs: dict[str, Any], text: TextTokenizer, tokenizer_path: Path) -> list[str]:
    notes = []
    heads = theirs["num_attention_heads"]
    groups = theirs.get("num_key_value_heads") or heads
    if groups != heads:
        notes.append(f"{groups} key and value heads were repeated for {heads} query heads")
    ends = theirs.get("eos_token_id")
    if text.end_id not in (ends if isinstance(ends, list) else [ends]):
        notes.append(f"texts end with id {text.end_id} here, and by the model's configuration with {ends}")
    first = Tokenizer.from_file(str(tokenizer_path)).encode("a", add_special_tokens=True).ids[:1]
    if first == [theirs.get("bos_token_id")]:
        notes.append(
            f"its own tokenizer begins a text with id {first[0]}; texts here begin without one, which may cost quality"
        )
    return notes


def _read_weights(source: Path) -> dict[str, Tensor]:
    """All weights under this project's names, in float32."""
    safetensors = require("safetensors")
    index = source / f"{WEIGHTS_NAME}.index.json"
    names = [WEIGHTS_NAME]
    try:
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        weights: dict[str, Tensor] = {}
        for name in names:
            for key, weight in require("safetensors.torch").load_file(source / name).items():
                weights[key.removeprefix("model.")] = weight.float()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the weights in {source} cannot be read ({type(error).__name__}: {error}): whole *.safetensors files are "
            "needed"
        ) from error
    if broken := [key for key, weight in weights.items() if not weight.isfinite().all()]:
        raise UserError(f"the weights in {source} are not all finite ({broken[0]}): give another checkpoint")
    # older checkpoints keep the rotary frequencies, which the configuration gives
    return {key: weight for key, weight in weights.items() if not key.endswith("rotary_emb.inv_freq")}


def _ungroup(weights: dict[str, Tensor], theirs: dict[str, Any]) -> None:
    """Give every query head its own key and value head, a copy of the one it shared."""
    heads = theirs["num_attention_heads"]
    groups = theirs.get("num_key_value_heads") or heads
    if groups == heads:
        return
    for name in [n for n in weights if n.endswith((".k_proj.weight", ".v_proj.weight"))]:
        by_group = weights[name].unflatten(0, (groups, -1))
        weights[name] = by_group.repeat_interleave(heads // groups, dim=0).flatten(0, 1)


def _untie(weights: dict[str, Tensor], theirs: dict[str, Any]) -> list[str]:
    """Give the head a copy of the embedding that it was tied to, and say so."""
    # transformers ties no head that the checkpoint has a weight of its own for
    if "lm_head.weight" in weights or "embed_tokens.weight" not in weights or not theirs.get("tie_word_embeddings"):
        return []
    weights["lm_head.weight"] = weights["embed_tokens.weight"].clone()
    return ["the head was tied to the embedding and is a copy of it now"]


def _truncate(weights: dict[str, Tensor], rank: int) -> list[KeptLayer]:
    """Put factors in the place of every matrix of a block."""
    layers = []
    for key in [n for n in weights if n.endswith("_proj.weight")]:
        left_OK, value_K, right_KI = torch.linalg.svd(weights.pop(key), full_matrices=False)
        name = key.removesuffix(".weight")
        # split evenly, so that both factors learn at one rate
        root_R = value_K[:rank].sqrt()
        weights[f"{name}.A"] = root_R[:, None] * right_KI[:rank]
        weights[f"{name}.B"] = left_OK[:, :rank] * root_R
        energy_K = value_K.double().square()
        total = energy_K.sum()
        layers.append(KeptLayer(name, float(energy_K[:rank].sum() / total) if total else 1.0))
    return sorted(layers, key=lambda layer: (int(layer.name.split(".")[1]), layer.name))
