"""The yardstick below every result: a model that knows how frequent each token is, and no more."""

import json
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from elas_lightning.data.loaders import ValidationSet
from elas_lightning.data.rows import IGNORED
from elas_lightning.data.shards import OnDamage, encoded, open_documents
from elas_lightning.data.sources import Source
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.files import write_whole

SAMPLE_TOKENS = 2_000_000  # enough to know the frequencies; ten seconds of C4 at most


def unigram_perplexity(
    source: Source, tokenizer: TextTokenizer, validation: ValidationSet, on_damage: OnDamage
) -> float:
    """Perplexity on the validation targets of add-one-smoothed frequencies in a sample of training tokens.

    A trained model must stay well below it to have learnt anything about order.

    Args:
        source: the corpus; the sample is the beginning of its training split, end tokens included.
        tokenizer: of the run.
        validation: gives the targets.
        on_damage: as in training.
    """
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    reader = open_documents(source.train, on_damage)
    while counts.sum() < SAMPLE_TOKENS and (documents := reader.read(1024)):
        ids = np.concatenate(encoded(documents, tokenizer))
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    log_probability = torch.from_numpy(np.log((counts + 1) / (counts.sum() + tokenizer.vocab_size)))
    targets = validation.labels[validation.labels != IGNORED].long()
    return math.exp(-float(log_probability[targets].mean()))


def remembered(cache: Path, key: str) -> float | None:
    """The value a former run noted under ``key``, or None."""
    file = cache / "unigram" / f"{key}.json"
    return float(json.loads(file.read_text())["unigram_perplexity"]) if file.exists() else None


def remember(cache: Path, key: str, value: float) -> None:
    """Note a value under ``key`` for later runs, which find it anew where the cache cannot be written to."""
    folder = cache / "unigram"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{key}.json", json.dumps({"unigram_perplexity": value}))
