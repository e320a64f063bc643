"""Words that were met before are looked up: the tokenizer's own ids, at several times the tokenizer's speed.

Most tokenizers split text into words before anything else, and what they make of a word does not depend on the
others. Where that is so, a text may be cut at borders of words and the ids of its parts joined; parts that come again
need not be encoded again. And where no more than the first tokens are wanted, the rest need not be looked at.
"""

import re
from collections.abc import Callable
from typing import Any

BYTES_OF_ID = 4  # int32
_LONGEST = 32  # characters of a word that is kept: longer ones hardly come again
_MOST = 1 << 18  # words kept, some forty megabytes
_CHARACTERS_A_TOKEN = 4  # of usual text; where it is too few, more of the text is looked at

# Borders are told from the two characters around them alone, and only where both are ASCII: then no normalisation
# reaches across. Here: white space behind something printable. Between white space and what follows there is none.
_AT_SPACES = re.compile(r"(?s:.+?)(?:(?<=[!-~])(?= )|\Z)")
_AT_WHITE_SPACE = re.compile(r"(?s:.+?)(?:(?<=[!-~])(?=[ \n\r\t])|\Z)")
# GPT-2's words besides are letters, digits, or signs, with at most one space in front. An apostrophe is left with
# what surrounds it, as it may begin a word of its own ('s) or be a sign like others.
_SIGNS = r"[!-&(-/:-@\[-`{-~]"
_AT_KINDS = re.compile(
    r"[ \n\r\t]*+(?:"
    r"[A-Za-z]++(?=[ -~\n\r\t]|\Z)|"
    r"[0-9]++(?=[ -~\n\r\t]|\Z)|"
    rf"{_SIGNS}++(?=[A-Za-z0-9 \n\r\t]|\Z))"
    r"|(?s:.+?)(?:(?<=[!-~])(?=[ \n\r\t])|\Z)"
)
_PLAIN = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
_BY_CHARACTER = _PLAIN | {"Nmt", "Precompiled"}


class WordCache(dict[str, bytes]):
    """What a tokenizer made of words, as int32 ids; full, it begins anew.

    Args:
        words: matches the words of a text one after the other, all of it.
        encode: the ids of a word.
    """

    def __init__(self, words: re.Pattern[str], encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._find = words.findall
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[word] = ids
        return ids

    def encode(self, text: str) -> bytes:
        """The ids of a text."""
        return b"".join(map(self.__getitem__, self._find(text)))

    def encode_head(self, text: str, tokens: int) -> tuple[bytes, bool]:
        """The first ids of a text: at least that many, or all of them.

        Returns:
            The ids, and whether they are all.
        """
        head, begin, size = b"", 0, tokens * _CHARACTERS_A_TOKEN
        while begin + size < len(text):
            words = self._find(text, begin, begin + size)
            words.pop()  # it ends where we cut, not at a border
            begin += sum(map(len, words))
            head += b"".join(map(self.__getitem__, words))
            if len(head) >= tokens * BYTES_OF_ID:
                return head, False
            if not words:
                size *= 2
        return head + b"".join(map(self.__getitem__, self._find(text, begin))), True


def words_of(definition: dict[str, Any]) -> re.Pattern[str] | None:
    """How to cut text for a tokenizer so that the ids of the parts, joined, are those of the whole.

    Args:
        definition: of the tokenizer, as ``tokenizer.json`` holds it.

    Returns:
        A pattern whose matches make up any text; None for kinds of tokenizers of which it is not known.
    """
    added = definition["added_tokens"]
    if any(token["rstrip"] or (" " in token["content"] and token["content"].strip()) for token in added):
        return None  # one that takes in the space behind it, or one of several words
    normalizers = _parts(definition["normalizer"], "normalizers")
    splitters = _parts(definition["pre_tokenizer"], "pretokenizers")
    if not all(map(_keeps_words, normalizers)) or not all(map(_looks_at_words, splitters)):
        return None
    # special tokens are text like any other (TextTokenizer.encode); others must not be cut in two
    if (
        [splitter["type"] for splitter in splitters] == ["ByteLevel"]
        and splitters[0]["use_regex"]
        and not splitters[0]["add_prefix_space"]
        and all(normalizer["type"] in _PLAIN for normalizer in normalizers)
        and all(token["special"] for token in added)
    ):
        return _AT_KINDS
    if splitters and splitters[0]["type"] in ("WhitespaceSplit", "Whitespace"):
        return _AT_WHITE_SPACE
    return _AT_SPACES if any(map(_splits_at_spaces, splitters)) else None


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [part for inner in step[name] for part in _parts(inner, name)]


def _keeps_words(normalizer: dict[str, Any]) -> bool:
    kind = normalizer["type"]
    if kind == "Replace":  # T5 makes one of several spaces, and nothing else
        return normalizer["pattern"] == {"Regex": " {2,}"}
    if kind == "Strip":  # no word but the last ends in white space; all but the first begin with it
        return not normalizer["strip_left"]
    return kind in _BY_CHARACTER


def _looks_at_words(splitter: dict[str, Any]) -> bool:
    return splitter["type"] in ("Digits", "Punctuation", "ByteLevel") or _splits_at_spaces(splitter)


def _splits_at_spaces(splitter: dict[str, Any]) -> bool:
    kind = splitter["type"]
    if kind == "ByteLevel":
        return bool(splitter["use_regex"])
    if kind == "Metaspace":
        return bool(splitter.get("split", True))
    return kind in ("WhitespaceSplit", "Whitespace")
