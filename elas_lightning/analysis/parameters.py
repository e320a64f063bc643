"""Searched parameters: how a value found in a result file becomes a level on an axis.

The files hold what a YAML may hold: numbers, strings, null, booleans, lists. A plot needs either
numbers (a scale) or names in a stated order, so every parameter is turned into one or the other once,
while loading, and nothing further down looks at raw cells again.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Level = float | str
_LONG_LABEL = 20


@dataclass(frozen=True)
class Parameter:
    """One searched parameter.

    Args:
        name: the short name, a column of ``trials.csv``.
        label: what an axis calls it.
        levels: its values in the order of the sweep's file; numbers ascending when it is numeric.
        numeric: True when every value is a number, so that it has a scale.
        log: True when the sweep searched it on a log scale.
    """

    name: str
    label: str
    levels: tuple[Level, ...]
    numeric: bool
    log: bool = False


def parse_cell(text: str) -> Any:
    """Give a CSV cell back the type it had in the sweep's YAML; an empty cell is ``None``."""
    if text.strip() in {"", "None", "null", "nan", "NaN"}:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def is_number(value: Any) -> bool:
    """True for ints and floats; a bool is a switch, not a quantity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def name_of(parameter: str, value: Any) -> str:
    """Say a value as a reader would: 4.0 is ``4``, a list ``a + b``, no rank ``full rank``."""
    if value is None:
        # In the model's configuration a rank of null means that the layer is not factorised.
        return "full rank" if "rank" in parameter else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={name_of(str(key), item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " + ".join(name_of("", item) for item in value) or "none"
    return str(value)


def spoken(parameter: Parameter) -> str:
    """A parameter in a sentence: its label where that is short (``peak learning rate``), else its name."""
    if len(parameter.label) >= _LONG_LABEL:
        return parameter.name.replace("_", " ")
    return lower_first(parameter.label)


def lower_first(text: str) -> str:
    """A label as it continues a sentence; an acronym keeps its capitals."""
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def level_name(parameter: Parameter, level: Level) -> str:
    """The name of a level that was already loaded."""
    return name_of(parameter.name, level)


def phrase(parameter: Parameter, level: Level) -> str:
    """A parameter with its level inside a sentence: ``rank 8``, ``learning rate 0.00103``, ``full rank``."""
    name, value = spoken(parameter), level_name(parameter, level)
    if parameter.numeric and not float(level).is_integer():
        value = f"{float(level):.3g}"
    return value if name in value else f"{name} {value}"


def side_name(parameter: Parameter, level: Level) -> str:
    """A level as one side of a comparison: ``elas`` as it is, a number with its parameter (``rank 8``)."""
    return phrase(parameter, level) if parameter.numeric else level_name(parameter, level)


def make_parameter(name: str, search: Mapping[str, Any], found: Iterable[Any]) -> Parameter:
    """Join what the sweep meant to search (``search``) with the values that were found in its runs.

    A ``None`` among the found values of a numeric range comes from a run without that parameter; it makes
    the parameter a list of names, because a scale has no place for it.
    """
    planned = list(search.get("values") or [])
    values = planned + list(found)
    label = str(search.get("label") or name.replace("_", " "))
    label = label[:1].upper() + label[1:]
    log = bool(search.get("log", False))
    if values and all(is_number(value) for value in values):
        return Parameter(name, label, tuple(sorted({float(value) for value in values})), True, log)
    # Where numbers and names mix (rank 4, 8, full rank) the numbers still read best in ascending order.
    if any(is_number(value) for value in values):
        values = sorted(values, key=lambda value: (not is_number(value), value if is_number(value) else 0))
    return Parameter(name, label, tuple(dict.fromkeys(name_of(name, value) for value in values)), False, False)


def to_level(parameter: Parameter, value: Any) -> Level:
    """The level of ``parameter`` that a raw value stands for."""
    return float(value) if parameter.numeric else name_of(parameter.name, value)
