import math
from collections import Counter

import pytest

from elas_lightning.data import unigram
from elas_lightning.data.shards import TextReader


def test_is_the_add_one_estimate_on_the_validation_targets(make_data, corpus):
    data = make_data()
    tokenizer = data.text_tokenizer
    counts: Counter[int] = Counter()
    reader = TextReader(data.corpus.train)
    while texts := reader.read(10):
        for ids in tokenizer.encode(texts):
            counts.update(ids.tolist())
    total = sum(counts.values()) + tokenizer.vocab_size
    labels = [i for batch in data.val_dataloader() for i in batch["labels"].flatten().tolist() if i != -100]
    expected = math.exp(-sum(math.log((counts[i] + 1) / total) for i in labels) / len(labels))
    assert data.unigram_perplexity() == pytest.approx(expected)
    assert 1 < expected < data.vocab_size


def test_is_computed_once(make_data, monkeypatch):
    value = make_data().unigram_perplexity()
    monkeypatch.setattr(unigram, "unigram_perplexity", None)  # a second computation would fail
    assert make_data(seed=5, batch_size=1).unigram_perplexity() == value
    with pytest.raises(TypeError):
        make_data(validation_tokens=10).unigram_perplexity()


def test_a_cache_that_cannot_be_written_to_costs_no_result(make_data, tmp_path):
    data = make_data()
    assert data.unigram_perplexity() > 1
    (tmp_path / "cache" / "unigram").rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "unigram").touch()
    assert make_data().unigram_perplexity() == data.unigram_perplexity()
