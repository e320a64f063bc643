"""What kind of thing each field of ``result.json`` and ``summary.json`` holds: runs and sweeps write them, the analysis
reads them, and a file that a hand has been in is refused by the field's name rather than wherever it does not fit."""

from collections.abc import Iterable, Mapping
from typing import Any

from elas_lightning.trials_table import STATES

_TEXT, _WHOLE, _NUMBER = (str,), (int,), (int, float)
_LIST, _MAPPING = (list,), (dict,)
_NULL = (type(None),)
# JSON's own types have these names for people; a truth value is none of the numbers.
_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}
_ANY = "*"

# The types that a field may have, or the names that it may be. By dotted names, ``*`` standing for every field that has
# no line of its own; what has none at all may be anything.
Fields = Mapping[str, tuple[type, ...] | tuple[str, ...]]

RESULT_FIELDS: Fields = {
    "run": _TEXT,
    "state": STATES,
    "reason": _TEXT + _NULL,
    "seed": _WHOLE,
    "config": _MAPPING,
    "overlays": _LIST,
    "overrides": _MAPPING,
    "metrics": _MAPPING,
    "metrics.*": _NUMBER + _NULL,
    "metrics.account": _MAPPING + _NULL,
    "metrics.account.*": _NUMBER,
    "backend": _MAPPING + _NULL,
    "backend.*": _TEXT + _NULL,
    "data": _MAPPING + _NULL,
    "data.unigram_perplexity": _NUMBER + _NULL,
    "environment": _MAPPING + _NULL,
    "environment.command": _TEXT + _NULL,
    "environment.hardware": _TEXT + _NULL,
    "environment.versions": _MAPPING + _NULL,
    "started": _TEXT,
    "finished": _TEXT,
}
SUMMARY_FIELDS: Fields = {
    "name": _TEXT,
    "question": _TEXT + _NULL,
    "command": _TEXT + _NULL,
    "data": _MAPPING + _NULL,
    "data.unigram_perplexity": _NUMBER + _NULL,
    "environment": _MAPPING + _NULL,
    "environment.versions": _MAPPING + _NULL,
    "objective": _TEXT + _NULL,
    "objectives": _LIST + _NULL,
    "objectives.*": _TEXT,
    "search": _MAPPING,
    "search.*": _MAPPING,
    "search.*.keys": _LIST,
    "search.*.keys.*": _TEXT,
    "search.*.values": _LIST + _NULL,
    "seeds": _LIST + _WHOLE + _NULL,
    "seeds.*": _WHOLE,
    "plots": _LIST + _NULL,
    "plots.*": _MAPPING,
    "twins": _MAPPING + _NULL,
    "twins.*": _TEXT,
    "runs": _MAPPING + _NULL,
    "runs.*": _WHOLE + _NULL,
    "seconds": _NUMBER + _NULL,
    "importances": _MAPPING + _NULL,
    "importances.*": _NUMBER,
    "parts": _LIST,
    "parts.*": _MAPPING,
    "parts.*.name": _TEXT,
    "parts.*.folder": _TEXT,
}


def wrong_field(content: Mapping[str, Any], fields: Fields) -> str | None:
    """Say the first field that holds another kind of thing than it should, and what it should; ``None`` if none does.

    Args:
        content: Of a JSON file.
        fields: ``RESULT_FIELDS`` or ``SUMMARY_FIELDS``.
    """
    return _wrong(content.items(), fields, "", "")


def _wrong(items: Iterable[tuple[Any, Any]], fields: Fields, place: str, pattern: str) -> str | None:
    for key, value in items:
        named = f"{pattern}{key}" if f"{pattern}{key}" in fields else f"{pattern}{_ANY}"
        if named not in fields:
            continue
        kinds = fields[named]
        if type(value) not in kinds and value not in (kind for kind in kinds if isinstance(kind, str)):
            return f"{place}{key} is {_short(value)}, where {_listed(kinds)} belongs"
        inside = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
        if found := _wrong(inside, fields, f"{place}{key}.", f"{named}."):
            return found
    return None


def _listed(kinds: tuple[type, ...] | tuple[str, ...]) -> str:
    names = [kind if isinstance(kind, str) else _NAMES[kind] for kind in kinds if not (kind is int and float in kinds)]
    return " or ".join(names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
