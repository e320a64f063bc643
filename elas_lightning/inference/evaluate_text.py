"""How well a model predicts text: loss, perplexity and bits per byte of files and C4-format shards.

Every document is read alone and closed by the end token, as in training. Its first token is what the rest is
predicted from and is not itself a target, since in training nothing is ever predicted from an end token; the bytes
it stands for are left out too. Every other token, the end token included, is a target exactly once. Documents that
fit into one window therefore give exactly what validation gives (bits per byte, if the tokenizer leaves text as it is:
the bytes here are those of the text, in validation those of its tokens); a run that trains on truncated rows validates
on the beginnings of longer documents alone, while here they are scored to their end.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from elas_lightning.data.rows import IGNORED, make_batch
from elas_lightning.data.shards import TextReader
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.loss import linear_next_token_loss
from elas_lightning.training.metrics import TokenLoss

_SHARDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_READ_AHEAD = 256  # documents that are encoded together


@dataclass(frozen=True)
class TextScore:
    """What a model makes of a text.

    Args:
        source: The file or folder.
        documents: Those with something to predict.
        tokens: Targets.
        text_bytes: UTF-8 bytes of the documents, counted in the text itself, without their first tokens' bytes.
        loss: Mean over targets, in nats.
        perplexity: ``exp(loss)``.
        bits_per_byte: The same likelihood in bits per byte of ``text_bytes``.
        perplexity_galore_protocol: What the GaLore family's evaluation loops would print (see ``TokenLoss``); depends
            on the batch size.
        batches: Batches that the last number was taken over.
        seconds: Time it took.
    """

    source: str
    documents: int
    tokens: int
    text_bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float
    perplexity_galore_protocol: float
    batches: int
    seconds: float


@dataclass(frozen=True)
class Window:
    """A part of a document that the model sees at once.

    Args:
        ids: Up to L + 1 ids: L inputs, and L targets shifted by one.
        seen: How many of the targets, from the left, an earlier window has scored.
        text_bytes: The document's bytes in its first window, 0 in the others.
    """

    ids: np.ndarray
    seen: int
    text_bytes: int


def cut_windows(document: np.ndarray, length: int, stride: int, text_bytes: int) -> Iterator[Window]:
    """Cut a document into windows that begin ``stride`` tokens apart.

    With ``stride == length`` windows do not overlap, and a window's first target is predicted from one token alone.
    With a smaller stride each window but the first scores only what no earlier one has, so that every target behind
    the first window has at least ``length - stride`` tokens before it.

    Args:
        document: Ids, closed by the end token.
        length: L, inputs a window holds.
        stride: 1 to L.
        text_bytes: What the document's targets stand for.
    """
    for start in range(0, len(document) - 1, stride):
        first = start == 0
        yield Window(document[start : start + length + 1], 0 if first else length - stride, text_bytes if first else 0)
        if start + length >= len(document) - 1:
            return


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a file, or of the text files and shards of a folder in the order of their names.

    ``.json``, ``.jsonl`` and their ``.gz`` are C4-format shards, a JSON object with a ``text`` a line. Any other file
    is one document of UTF-8 text; in a folder, only those that end in ``.txt``.

    Raises:
        UserError: There is nothing to read, or a file is damaged or no text.
    """
    if not path.exists():
        raise UserError(f"--text {path}: there is no such file or folder")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith((*_SHARDS, ".txt")))
        if not files:
            raise UserError(f"--text {path}: no file in it ends in {', '.join((*_SHARDS, '.txt'))}")
    for file in files:
        if file.name.endswith(_SHARDS):
            reader = TextReader((str(file),))
            while texts := reader.read(_READ_AHEAD):
                yield from texts
        else:
            yield _plain_text(file)


def _plain_text(file: Path) -> str:
    try:
        # bytes, since reading as text would turn the line ends of Windows into shorter ones
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--text {file} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"--text {file} cannot be read ({error.strerror or error})") from error


def evaluate_text(
    model: Llama,
    tokenizer: TextTokenizer,
    path: Path,
    *,
    length: int,
    stride: int,
    batch_size: int = 16,
    limit: int | None = None,
) -> TextScore:
    """Score the documents of a file or folder.

    Args:
        model: In the phase it is to be judged in (2:4 step on or off).
        tokenizer: The model's.
        path: As :func:`read_documents` takes it.
        length: Tokens a window holds; the run's sequence length, unless there is a reason.
        stride: Tokens from one window of a document to the next, 1 to ``length``.
        batch_size: Windows at a time.
        limit: Documents at most.

    Raises:
        UserError: Nothing to read, or nothing in it to predict.
    """
    started = time.perf_counter()
    metric = TokenLoss().to(model.lm_head.weight.device)
    documents = 0

    def windows() -> Iterator[Window]:
        nonlocal documents
        texts = islice(read_documents(path), limit)
        while block := list(islice(texts, _READ_AHEAD)):
            for text, ids in zip(block, tokenizer.encode(block), strict=True):
                if len(ids) > 1:
                    documents += 1
                    own = len(text.encode()) - _own_bytes(text, tokenizer.token_bytes[ids[0]])
                    yield from cut_windows(ids, length, stride, max(own, 0))

    todo = windows()
    while group := list(islice(todo, batch_size)):
        _score(model, tokenizer, group, metric)
    if not documents:
        raise UserError(f"--text {path} holds no document with two tokens or more: there is nothing to predict")
    found = metric.compute()
    return TextScore(
        source=str(path),
        documents=documents,
        tokens=int(metric.tokens),
        text_bytes=int(metric.text_bytes),
        batches=int(found.pop("batches")),
        **found,
        seconds=time.perf_counter() - started,
    )


def _own_bytes(text: str, first: bytes) -> int:
    """Bytes of a text that its first token stands for, without a space that the tokenizer put in front."""
    return len(first) - (first.startswith(b" ") and not text[:1].isspace())


def _score(model: Llama, tokenizer: TextTokenizer, group: list[Window], metric: TokenLoss) -> None:
    longest = max(len(window.ids) for window in group) - 1
    ids = [window.ids for window in group]
    batch = make_batch(ids, longest, tokenizer.end_id, tokenizer.byte_lengths)
    labels = batch["labels"]
    for label_row, window in zip(labels, group, strict=True):
        label_row[: window.seen] = IGNORED
    device = model.lm_head.weight.device
    with torch.inference_mode():
        features = model.hidden(batch["input_ids"].to(device))
        nll, tokens = linear_next_token_loss(features, model.lm_head.weight, labels.to(device))
        metric.update(nll, tokens, torch.tensor(sum(window.text_bytes for window in group)))
