"""The beginning of a document, where no more than its first tokens are wanted: cut so that they stay what they are.

A row of ``batching: truncate`` needs T + 1 tokens of a document, of whatever length. Most tokenizers split text into
words before anything else, and what they make of a word does not depend on the others; a cut between two words then
changes no token before it.
"""

from typing import Any

_CHARACTERS_A_TOKEN = 6  # more than most text has; where it is too few, the whole document is encoded
_TRIES = 32  # spaces looked at

_BY_CHARACTER = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Lowercase",
    "StripAccents",
    "Precompiled",
    "Strip",
    "Prepend",
}


def head(text: str, tokens: int) -> str | None:
    """The beginning of a text that is long, up to a single space between two ASCII letters.

    Such a place is a border of words for every tokenizer that :func:`cuts_at_spaces` accepts, and no
    normalisation reaches across it.

    Returns:
        Text that likely has that many tokens; None where the text is short, or has no such place.
    """
    end = tokens * _CHARACTERS_A_TOKEN
    if len(text) <= end:
        return None
    for _ in range(_TRIES):
        end = text.rfind(" ", 1, end)
        if end < 0:
            return None
        if (text[end - 1] + text[end + 1]).isascii() and (text[end - 1] + text[end + 1]).isalpha():
            return text[:end]
    return None


def cuts_at_spaces(definition: dict[str, Any]) -> bool:
    """Whether a single space between two ASCII letters always begins a new word for a tokenizer.

    Args:
        definition: of the tokenizer, as ``tokenizer.json`` holds it. Kinds that are not known to do so do not.
    """
    added = definition["added_tokens"]
    if any(token["rstrip"] or (" " in token["content"] and token["content"].strip()) for token in added):
        return False  # one that takes in the space behind it, or one of several words
    return all(map(_keeps_words, _parts(definition["normalizer"], "normalizers"))) and any(
        map(_splits_words, _parts(definition["pre_tokenizer"], "pretokenizers"))
    )


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return (
        [part for inner in step[name] for part in _parts(inner, name)]
        if step["type"] == "Sequence"
        else [step]
    )


def _keeps_words(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":  # T5 makes one of several spaces, and nothing else
        return normalizer["pattern"] == {"Regex": " {2,}"}
    return normalizer["type"] in _BY_CHARACTER


def _splits_words(pre_tokenizer: dict[str, Any]) -> bool:
    kind = pre_tokenizer["type"]
    if kind == "ByteLevel":
        return bool(pre_tokenizer["use_regex"])
    if kind == "Metaspace":
        return bool(pre_tokenizer.get("split", True))
    return kind in ("WhitespaceSplit", "Whitespace")
