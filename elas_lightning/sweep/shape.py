"""The shape of a sweep's file: whether each field holds the kind of thing it is read as."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from elas_lightning.errors import UserError
from elas_lightning.settings import LARGEST_SEED


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as it is in overlays and in YAML 1.2; PyYAML by itself takes it for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a sweep's file, their shapes checked.

    Raises:
        UserError: It cannot be read, is not YAML, or a field holds another kind of thing.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a sweep's YAML file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of fields such as question, base, search and seeds")
    for complaint in _complaints(content):
        raise UserError(f"{path}: {complaint}")
    return content


def _complaints(content: dict[str, Any]) -> Iterator[str]:
    for field, kind, what in (
        ("base", str, "names of overlays below experiments/"),
        ("seeds", int, "whole numbers"),
        ("without", dict, "points, each a mapping of dimensions to choices"),
        ("plots", dict, "plots, each a mapping with a kind"),
        ("parts", str, "names from sweeps/"),
    ):
        value = content.get(field, [])
        if not isinstance(value, list) or not all(is_a(item, kind) for item in value):
            yield f"{field} is {value!r}: give a list of {what}"
    for field in ("machines", "search", "overrides", "twins", "budget_minutes"):
        if not isinstance(content.get(field, {}), dict):
            yield f"{field} is {content[field]!r}: give a mapping"
    yield from _wrong_numbers(content)
    yield from _wrong_names(content)
    for name, dimension in content.get("search", {}).items():
        yield from _wrong_dimension(f"search.{name}", dimension)


def _wrong_numbers(content: dict[str, Any]) -> Iterator[str]:
    for seed in content.get("seeds", []):
        if not 0 <= seed <= LARGEST_SEED:
            yield f"seeds has {seed}: give whole numbers from 0 to {LARGEST_SEED}"
    trials = content.get("trials")
    if trials is not None and not (is_a(trials, int) and trials >= 1):
        yield f"trials is {trials!r}: give a whole number, 1 or more"


def _wrong_names(content: dict[str, Any]) -> Iterator[str]:
    for kind, machine in content.get("machines", {}).items():
        named = machine if isinstance(machine, dict) else {}
        if not all(isinstance(named.get(key), str) for key in ("size", "data")):
            yield f"machines: give size and data for cpu and for gpu, names of experiments/; {kind} has {machine!r}"
    for name in content.get("base", []):
        try:
            name.format(size="", data="")
        except (LookupError, ValueError) as error:
            yield f"base has {name!r} ({error}): what may stand in braces is size and data"


def _wrong_dimension(where: str, dimension: Any) -> Iterator[str]:
    if not isinstance(dimension, dict):
        yield f"{where} is {dimension!r}: give a mapping with overlays, or keys and choices, or keys, low and high"
        return
    keys = dimension.get("keys", [])
    if not isinstance(keys, list) or not all(is_a(key, str) for key in keys):
        yield f"{where}.keys is {keys!r}: give a list of dotted configuration keys"
    for field, kind, what in (
        ("choices", list | dict, "a list of values, or a mapping of labels to values"),
        ("overlays", dict, "a mapping of labels to overlays below experiments/"),
        ("factors", dict, "a mapping of labels to keys and their factors"),
        ("low", int | float, "a number"),
        ("high", int | float, "a number"),
    ):
        value = dimension.get(field)
        if value is not None and not is_a(value, kind):
            yield f"{where}.{field} is {value!r}: give {what}"
    for label, factors in (dimension.get("factors") or {}).items():
        if not isinstance(factors, dict):
            yield f"{where}.factors.{label} is {factors!r}: give a mapping of keys to factors"


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, or of one of a union; YAML's truth values count as no numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)
