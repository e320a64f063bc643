"""Loss on text: each token once, in the context that was promised, over the bytes that are there."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_corpus import sentences, write_shard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from elas_lightning.data import C4DataModule
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.inference.evaluate_text import cut_windows, evaluate_text, read_documents
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.loss import linear_next_token_loss
from elas_lightning.training.metrics import TokenLoss


@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 3), (8, 1), (5, 4), (2, 1)])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 10, 17, 30])
def test_each_token_but_the_first_is_a_target_once(size: int, length: int, stride: int) -> None:
    document = np.arange(size)
    targets: list[int] = []
    for window in cut_windows(document, length, stride, 99):
        ids = window.ids.tolist()
        assert 2 <= len(ids) <= length + 1
        new = ids[1 + window.seen :]
        assert new  # no window is for nothing
        targets += new
        if window.seen:
            assert window.seen + 1 > length - stride  # tokens before the first new target
    assert targets == list(range(1, size))
    assert sum(w.text_bytes for w in cut_windows(document, length, stride, 99)) == (99 if size > 1 else 0)


def _loss_by_hand(model: Llama, documents: list[np.ndarray], length: int, stride: int) -> tuple[float, int]:
    """One forward pass a token in float64, in the context that the windows promise."""
    total, count = 0.0, 0
    double = Llama(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    for ids in documents:
        for place in range(1, len(ids)):
            # the window in which this target is new
            steps = 0 if place <= length else math.ceil((place - length) / stride)
            context = torch.tensor(ids[steps * stride : place][None], dtype=torch.long)
            with torch.no_grad():
                logits = double(context)[0, -1]
            total -= float(logits.log_softmax(-1)[int(ids[place])])
            count += 1
    return total / count, count


@pytest.mark.parametrize("stride", [12, 5])
def test_loss_is_that_of_each_token_in_its_promised_context(
    opinionated: Llama, text_tokenizer: TextTokenizer, tmp_path: Path, stride: int
) -> None:
    texts = ["a", *sentences("x", 3)]
    write_shard(tmp_path / "some.json.gz", texts)
    found = evaluate_text(
        opinionated, text_tokenizer, tmp_path / "some.json.gz", length=12, stride=stride, batch_size=4
    )
    loss, count = _loss_by_hand(opinionated, text_tokenizer.encode(texts), 12, stride)
    assert found.tokens == count
    assert found.documents == 4
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    first = [len(text_tokenizer.decode([int(text_tokenizer.encode([t])[0][0])]).encode()) for t in texts]
    assert found.text_bytes == sum(len(t.encode()) for t in texts) - sum(first)
    assert found.bits_per_byte == pytest.approx(loss * count / math.log(2) / found.text_bytes, rel=1e-5)


def test_documents_that_fit_give_what_validation_gives(
    opinionated: Llama, make_data: Callable[..., C4DataModule], tmp_path: Path, corpus: Path
) -> None:
    data = make_data(batching="truncate", sequence_length=400, validation_tokens=10**6)
    data.setup("validate")
    expected = TokenLoss()
    with torch.no_grad():
        for batch in data.val_dataloader():
            nll, tokens = linear_next_token_loss(
                opinionated.hidden(batch["input_ids"]), opinionated.lm_head.weight, batch["labels"]
            )
            expected.update(nll, tokens, batch["target_bytes"].sum())
    folder = tmp_path / "validation"
    folder.mkdir()
    for shard in corpus.glob("c4-validation.*"):
        (folder / shard.name).symlink_to(shard)
    found = evaluate_text(opinionated, data.text_tokenizer, folder, length=400, stride=400, batch_size=4)
    assert found.tokens == int(expected.tokens)
    for name, value in expected.compute().items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5), name


def test_a_file_of_text_is_one_document_whatever_its_line_ends(
    opinionated: Llama, text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    raw = "the café\r\nwall — \r\n\r\nnoon".encode()
    (tmp_path / "note.md").write_bytes(raw)
    found = evaluate_text(opinionated, text_tokenizer, tmp_path / "note.md", length=16, stride=16)
    first = text_tokenizer.encode([raw.decode()])[0][0]
    assert found.documents == 1
    assert found.text_bytes == len(raw) - int(text_tokenizer.byte_lengths[first])


def test_a_space_that_the_tokenizer_puts_in_front_is_no_byte_of_the_text(opinionated: Llama, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "▁a": 2, "▁b": 3}, unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    write_shard(tmp_path / "some.json.gz", ["a b"])
    found = evaluate_text(opinionated, TextTokenizer(words, "words"), tmp_path / "some.json.gz", length=8, stride=8)
    assert found.text_bytes == len(" b")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.json.gz", ["two", "three"])
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "four"}) + "\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert list(read_documents(tmp_path)) == ["one", "two", "three", "four"]


def test_limit_counts_documents(opinionated: Llama, text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write_shard(tmp_path / "some.json.gz", sentences("x", 9))
    found = evaluate_text(opinionated, text_tokenizer, tmp_path / "some.json.gz", length=16, stride=16, limit=4)
    assert found.documents == 4


def _nothing(folder: Path) -> Path:
    return folder / "nothing"


def _picture(folder: Path) -> Path:
    (folder / "picture").write_bytes(b"\x89PNG")
    return folder / "picture"


def _empty(folder: Path) -> Path:
    (folder / "empty.txt").touch()
    return folder / "empty.txt"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "there is no such file or folder"),
        (_picture, "is not UTF-8 text"),
        (_empty, "holds no document with two tokens or more"),
        (lambda folder: folder, "no file in it ends in"),
    ],
)
def test_what_is_no_text_is_refused(
    opinionated: Llama, text_tokenizer: TextTokenizer, tmp_path: Path, make: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_text(opinionated, text_tokenizer, make(tmp_path), length=16, stride=16)
