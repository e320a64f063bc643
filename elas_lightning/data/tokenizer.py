"""The tokenizer of a run, trained once or fetched: text to ids, and how many bytes each id stands for."""

import gzip
import hashlib
import json
import logging
import re
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from elas_lightning.data.cache import build_once
from elas_lightning.data.hub import fetch
from elas_lightning.data.sources import Source
from elas_lightning.data.words import WordCache, words_of
from elas_lightning.errors import UserError

PYDOCS_VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
# The paper's tokenizer, pinned; anything else from the hub may be pinned the same way (name@commit).
_T5_BASE = ("google-t5/t5-base", "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1")
_END_TOKENS = ("</s>", END_OF_TEXT, "<|end_of_text|>", "<eos>")
_TRAINER_VERSION = 1  # raise it when the same corpus would give another vocabulary
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_SENTINEL = re.compile(r"<extra_id_\d+>")

_log = logging.getLogger(__name__)


def _bytes_of_characters() -> dict[str, int]:
    """Which byte each printable character of a byte-level vocabulary stands for (GPT-2's convention)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _bytes_of_characters()


class TextTokenizer:
    """A tokenizer as this project uses one: documents in, ids out, each document closed by an end token.

    Args:
        tokenizer: byte-level or sentencepiece-like tokenizer with an end-of-text token.
        name: how error messages and result files call it.

    Raises:
        UserError: no end token, ids that are drawn at random, or a kind of tokenizer whose tokens have no byte
            lengths.
    """

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        # Some files say that text is to be cut or padded, as some model needs it.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.name = name
        ends = [token for token in _END_TOKENS if tokenizer.token_to_id(token) is not None]
        if not ends:
            raise UserError(f"the tokenizer {name} has no end-of-text token; it needs one of {', '.join(_END_TOKENS)}")
        added = json.loads(tokenizer.to_str())["added_tokens"]
        special = {token["content"] for token in added if token["special"]}
        # "</s>" may be a word of a vocabulary that was learned from web pages
        self.end_token = next((token for token in ends if token in special), ends[0])
        # Where a file does not say that it is special, it would be met in text, too, and shown in what is decoded.
        tokenizer.add_special_tokens([self.end_token])
        end_id = tokenizer.token_to_id(self.end_token)
        assert end_id is not None
        self.end_id: int = end_id
        self._definition: dict[str, Any] = json.loads(tokenizer.to_str())
        if self._definition["model"].get("dropout"):
            raise UserError(
                f"the tokenizer {name} leaves out merges at random (model.dropout in its file), so no run could "
                "be repeated or gone on with; set it to null there"
            )
        decoder = json.dumps(self._definition["decoder"])
        self._byte_level = '"ByteLevel"' in decoder
        if not self._byte_level and '"Metaspace"' not in decoder and "\\u2581" not in decoder:
            raise UserError(
                f"the tokenizer {name} is neither byte-level nor sentencepiece-like by its decoder, so its tokens "
                "have no length in bytes to measure bits per byte with; use one that is"
            )
        # T5's 100 sentinels close its 32,100 ids and stand for no text: a model of 32,000 ids is whole.
        size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())  # there may be ids that no token has
        while _SENTINEL.fullmatch(tokenizer.id_to_token(size - 1) or ""):
            size -= 1
        self.vocab_size: int = size
        token = _unknown_token(self._definition["model"])
        unknown = None if token is None else tokenizer.token_to_id(token)
        self.unknown_token = None if unknown is None else token
        self._unknown: list[int] = [] if unknown is None else [unknown]

    @property
    def definition(self) -> str:
        """The whole tokenizer as the text of a ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=True)

    @cached_property
    def fingerprint(self) -> str:
        """Of the whole definition: equal fingerprints give equal ids for equal text."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]

    def encode(self, texts: list[str], wanted: int | None = None) -> list[np.ndarray]:
        """Encode documents, each closed by the end token, which appears nowhere else.

        Args:
            texts: documents.
            wanted: how many tokens of each are enough; None for all.

        Returns:
            One int32 array of ids a document, in order: at least as many ids as wanted, or all with the end token
            behind them.
        """
        # A document that talks about "</s>" is text like any other. Set here since pickling forgets it.
        self._tokenizer.encode_special_tokens = True
        end = _bytes([self.end_id])
        if self._words is None:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            documents = [self._text_ids(encoding.ids) + end for encoding in encodings]
        elif wanted is None:
            documents = [self._words.encode(text) + end for text in texts]
        else:
            heads = [self._words.encode_head(text, wanted) for text in texts]
            documents = [ids + end if whole else ids for ids, whole in heads]
        return [np.frombuffer(ids, dtype=np.int32).copy() for ids in documents]

    def decode(self, ids: list[int]) -> str:
        """The text that ids stand for; end tokens and other special ones stand for none."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @cached_property
    def _words(self) -> WordCache | None:
        words = words_of(self._definition)
        return None if words is None else WordCache(words, self._encode_word)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_words"}

    def _encode_word(self, word: str) -> bytes:
        return self._text_ids(self._tokenizer.encode(word, add_special_tokens=False).ids)

    def _text_ids(self, ids: list[int]) -> bytes:
        if self.end_id in ids or max(ids, default=0) >= self.vocab_size:
            # "</s>" and "<extra_id_0>" are pieces of T5's vocabulary, and met in running text they are text it lacks.
            here = [[index] if index < self.vocab_size and index != self.end_id else self._unknown for index in ids]
            ids = [index for part in here for index in part]
        return _bytes(ids)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of text that each id stands for, one entry an id, empty for special tokens.

        A token may be a part of a character: only the bytes of several joined are text. They are those of the text
        as the tokenizer's normalizer left it (T5: white space runs become one ``▁``, here one space), so exact for a
        byte-level vocabulary without one. What became the unknown token is not counted.
        """
        added = {token["id"]: token for token in self._definition["added_tokens"]}
        found = [b""] * self.vocab_size
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if index >= self.vocab_size or index in self._unknown:
                continue
            if index in added:  # spelled as it is meant, in either kind of vocabulary
                found[index] = b"" if added[index]["special"] else token.encode("utf-8")
            else:
                found[index] = self._bytes_of(token)
        return found

    @cached_property
    def byte_lengths(self) -> torch.Tensor:
        """How many :attr:`token_bytes` each id has: ``(vocab_size,)`` int64, 0 for special tokens."""
        return torch.tensor([len(text) for text in self.token_bytes], dtype=torch.int64)

    def _bytes_of(self, token: str) -> bytes:
        if self._byte_level:  # such vocabularies spell every byte as one printable character
            if not _BYTE_OF.keys() >= set(token):  # and are decoded so where one does not
                return token.encode("utf-8")
            return bytes(_BYTE_OF[character] for character in token)
        if byte := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("▁", " ").encode("utf-8")


def _unknown_token(model: dict[str, Any]) -> str | None:
    """What stands for text that the vocabulary lacks; unigram vocabularies name its place, the others itself."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _bytes(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def load_tokenizer(name: str, source: Source, cache: Path) -> TextTokenizer:
    """Make the tokenizer a user asked for.

    Args:
        name: ``auto`` (token shards: theirs; ``pydocs``: byte-level BPE of 4,096 trained on the corpus; else
            ``t5-base``), the path of a ``tokenizer.json``, or a model on the hub, pinned by ``name@commit`` where
            wanted. Token shards take no other than ``auto``.
        source: the corpus, for ``auto``.
        cache: the cache folder.

    Raises:
        UserError: file missing or no tokenizer, hub out of reach, or a tokenizer this project cannot use.
    """
    if source.tokenizer is not None:
        if name != "auto":
            raise UserError(
                f"data.tokenizer={name!r}: token shards bring the tokenizer they were made with "
                f"({source.tokenizer[1]}); leave data.tokenizer=auto, or read the text itself"
            )
        return read_tokenizer(*source.tokenizer)
    if name == "auto" and source.name == "pydocs":
        target = cache / "tokenizers" / f"pydocs-{source.fingerprint}-{PYDOCS_VOCABULARY}-v{_TRAINER_VERSION}"
        folder = build_once(target, lambda folder: _train(source, folder / "tokenizer.json"))
        return TextTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), f"pydocs-bpe-{PYDOCS_VOCABULARY}")
    if name == "auto":
        name = "t5-base"
    path = Path(name).expanduser()
    if path.suffix == ".json" or path.exists():
        if not path.is_file():
            raise UserError(
                f"data.tokenizer={name!r}: there is no such file; give a tokenizer.json, a hub name or 'auto'"
            )
    else:
        repository, _, revision = name.partition("@")
        if repository == "t5-base":
            repository, revision = _T5_BASE[0], revision or _T5_BASE[1]
        advice = "give its tokenizer.json as data.tokenizer, or use data.source=pydocs, which needs no hub"
        path = fetch(repository, "tokenizer.json", revision or None, advice)
    return read_tokenizer(path, name)


def read_tokenizer(path: Path, name: str) -> TextTokenizer:
    """Read a ``tokenizer.json``.

    Args:
        path: the file.
        name: how error messages and result files call it.

    Raises:
        UserError: no tokenizer, or one this project cannot use.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every fault of a file
        raise UserError(
            f"the tokenizer {name} cannot be read as a tokenizer.json ({path}: {' '.join(str(error).split())}); "
            "it must be a file saved by the tokenizers library"
        ) from error
    return TextTokenizer(tokenizer, name)


def _train(source: Source, target: Path) -> None:
    _log.info("training a byte-level BPE of %d tokens on %s (once)", PYDOCS_VOCABULARY, source.name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PYDOCS_VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(source.train), trainer)
    tokenizer.save(str(target))


def _texts(shards: tuple[str, ...]) -> Iterator[str]:
    for shard in shards:
        with gzip.open(shard, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
