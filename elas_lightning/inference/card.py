"""The model card: what a stranger must know of an exported model, told from its run's files and from measurements."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from elas_lightning import __version__
from elas_lightning.errors import UserError
from elas_lightning.inference.load import TrainedModel
from elas_lightning.inference.mask_effect import MaskEffect
from elas_lightning.layout import RESULT_NAME
from elas_lightning.nn.config import ModelConfig
from elas_lightning.result import RunResult

_FFN = {"swiglu": "SwiGLU", "relu2": "squared ReLU", "relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}
_CORPORA = {
    "c4": "C4 `en` (allenai/c4), streamed from the hub",
    "local": "local shards in C4's format",
    "pydocs": "`pydocs`: the English documentation of Python packages (about 25 MB)",
    "tokens": "token shards of `elas data prepare`",
}
# what two runs may differ in and still be the same experiment with another seed
_NOT_THE_EXPERIMENT = {
    "": ("seed_everything", "ckpt_path", "weights_only", "checkpoint"),
    "data": ("seed", "num_workers", "cache_dir"),
    "trainer": ("default_root_dir", "enable_progress_bar", "enable_checkpointing", "logger", "callbacks"),
}


@dataclass(frozen=True)
class Seeds:
    """Validation perplexity over runs that differ in their seed alone.

    Args:
        perplexity: By seed.
        mean: Over seeds.
        half_width: Of the 95 % interval (t).
    """

    perplexity: dict[int, float]
    mean: float
    half_width: float


def seeds_beside(directory: Path, result: RunResult) -> Seeds | None:
    """Look for the same run with other seeds in the folders beside a run, as a sweep leaves them.

    Args:
        directory: Of the run; its neighbours are searched.
        result: Of the run.

    Returns:
        The perplexities, or None where this run is the only one that came to an end.
    """
    found: dict[int, float] = {}
    for path in sorted(directory.absolute().parent.glob(f"*/{RESULT_NAME}")):
        try:
            other = RunResult.read(path.parent)
        except UserError:
            continue  # a neighbour's broken file says nothing about this run
        value = other.metrics.get("val_perplexity")
        if other.state == "complete" and value is not None and _experiment(other) == _experiment(result):
            found[other.seed] = value
    own = result.metrics.get("val_perplexity")
    if result.state != "complete" or own is None:
        return None
    found[result.seed] = own
    if len(found) < 2:
        return None
    # scipy and pandas, which nothing else here needs
    from elas_lightning.analysis.statistics import estimate

    over_seeds = estimate(list(found.values()))
    assert over_seeds is not None
    assert over_seeds.half_width is not None
    return Seeds(dict(sorted(found.items())), over_seeds.mean, over_seeds.half_width)


def _experiment(result: RunResult) -> dict[str, Any]:
    config = copy.deepcopy(result.config)
    for part, keys in _NOT_THE_EXPERIMENT.items():
        for key in keys:
            (config.get(part, {}) if part else config).pop(key, None)
    return {
        "config": config,
        "text": result.data.get("fingerprint"),
        "world_size": result.environment.get("world_size"),
    }


def write_card(
    folder: Path,
    name: str,
    trained: TrainedModel,
    *,
    dtype: str,
    exported_parameters: int,
    origin: dict[str, Any] | None,
    merged: str | None = None,
    effect: MaskEffect | str | None = None,
    seeds: Seeds | None = None,
) -> None:
    """Write ``README.md``.

    Args:
        folder: An existing directory.
        name: What to call the model.
        trained: What was exported.
        dtype: Of the exported weights.
        exported_parameters: Numbers in the exported weights.
        origin: Where an imported model comes from.
        merged: The architecture of ``transformers``; None for the form that keeps the factors.
        effect: What leaving off the 2:4 step does, or why that was not measured, or None without such a step.
        seeds: The same run with other seeds.
    """
    result = trained.result
    seconds = result.metrics.get("seconds") if result else None
    text = _template().render(
        name=name,
        config=trained.model.config,
        what=_in_words(trained.model.config),
        sparse=_sparsity_in_words(trained.model.config),
        active=trained.model.sparsity_active,
        trained=trained,
        result=result,
        at_the_end=result is not None and trained.step == result.config["trainer"]["max_steps"],
        # a result names the text that token shards were made of
        corpus=_CORPORA.get((result or trained).data.get("source", "")),
        training_time=_duration(seconds) if seconds else None,
        merged=merged,
        dtype=dtype,
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        exported_parameters=exported_parameters,
        effect=effect,
        seeds=seeds,
        origin=origin,
        version=__version__,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("elas_lightning.inference", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(count=lambda n: f"{n:,}", figure=lambda x: f"{x:.4g}", ppl=lambda x: f"{x:.2f}")
    return environment.get_template("card.md.j2")


def _in_words(config: ModelConfig) -> str:
    places = {"attention": config.attention_rank, "the feed-forward networks": config.ffn_rank}
    ranks = [
        f"rank {rank} in {place}" if rank is not None else f"full rank in {place}" for place, rank in places.items()
    ]
    gate = "" if config.gated else ", without a gate"
    between = ", SiLU between the factors (CoLA)" if config.bottleneck_activation else ""
    return f"{' and '.join(ranks)}{between}; feed-forward networks with {_FFN.get(config.ffn, config.ffn)}{gate}"


def _sparsity_in_words(config: ModelConfig) -> str | None:
    if not config.sparsity.placement:
        return None
    places = {
        "ffn_hidden": "the hidden features of the feed-forward networks",
        "ffn_input": "the input of the feed-forward networks",
        "ffn_bottleneck": "the features between the factors of the feed-forward networks",
        "attention_input": "the input of attention",
        "attention_output": "the output of attention",
    }
    layers = len(config.sparse_layers)
    where = "all layers" if layers == config.num_layers else f"{layers} of {config.num_layers} layers"
    return " and ".join(places[place] for place in config.sparsity.placement) + f", in {where}"


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if minutes < 3:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 180 else f"{seconds / 3600:.1f} h"
