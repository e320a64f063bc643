"""The shape of a sweep's file: whether each field holds the kind of thing it is read as."""

import math
import re
from collections.abc import Hashable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from elas_lightning.errors import UserError
from elas_lightning.settings import LARGEST_SEED

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as it is in overlays and in YAML 1.2; PyYAML by itself takes it for a text.

    Nor may a key stand twice, of which PyYAML keeps the last: a dimension that was copied and not renamed would go.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, each of whose keys stands once; what is merged in (``<<``) may be overruled."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                where = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice in one mapping", where)
        return super().construct_mapping(node, deep)


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


def build(part: type[T], where: str, content: dict[str, Any], **given: Any) -> T:
    """A dataclass of the fields that a mapping of the file holds; lists become tuples.

    Args:
        part: The dataclass.
        where: The mapping, as messages call it.
        content: The mapping.
        given: Fields that the file does not say.

    Raises:
        UserError: A field is unknown or missing.
    """
    known = {field.name: field for field in fields(part) if field.name not in given}  # type: ignore[arg-type]
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    for name in content:
        if name not in known:
            raise UserError(f"{where} has {name!r}, which is no field: there are {', '.join(known)}")
    for name in needed:
        if name not in content:
            raise UserError(f"{where} lacks {name}: {', '.join(needed)} are needed")
    return part(**given, **{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def _complaints(content: dict[str, Any]) -> Iterator[str]:
    if not isinstance(content.get("question", ""), str):
        yield f"question is {content['question']!r}: give a sentence"
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
    for field in ("machines", "search", "overrides", "twins", "budget_minutes", "pruning", "baseline"):
        if not isinstance(content.get(field, {}), dict):
            yield f"{field} is {content[field]!r}: give a mapping"
    objective = content.get("objective", "")
    if not all(isinstance(name, str) for name in (objective if isinstance(objective, list) else [objective])):
        yield f"objective is {objective!r}: give the name of a figure, or a list of names"
    for field in ("baseline", "without", "twins"):
        value = content.get(field, {})
        for point in value if isinstance(value, list) else [value]:
            if not all(map(_is_label, point.values())):
                yield f"{field} has {point}: give one choice of each, by its label"
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
        if set(named) != {"size", "data"} or not all(isinstance(name, str) for name in named.values()):
            yield f"machines: give size and data for cpu and for gpu, names of experiments/; {kind} has {machine!r}"
    for key in content.get("overrides", {}):
        if not isinstance(key, str):
            yield f"overrides has {key!r}: give dotted configuration keys"
    for name in content.get("base", []):
        try:
            name.format(size="", data="")
        except (LookupError, ValueError, AttributeError) as error:
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
        ("label", str, "a text"),
    ):
        value = dimension.get(field)
        if (value is not None and not is_a(value, kind)) or value in (math.inf, -math.inf):
            yield f"{where}.{field} is {value!r}: give {what}"
    if not isinstance(dimension.get("log", False), bool):
        yield f"{where}.log is {dimension['log']!r}: give true or false"
    for name, overlay in (dimension.get("overlays") or {}).items():
        if not isinstance(overlay, str):
            yield f"{where}.overlays.{name} is {overlay!r}: give the name of an overlay below experiments/"
    choices = dimension.get("choices") or ()
    for label in choices if isinstance(choices, dict) else [c for c in choices if not isinstance(c, list)]:
        if not _is_label(label):
            yield f"{where}.choices has {label!r}: give a number or a text, or a mapping of labels to values"
    for label, factors in (dimension.get("factors") or {}).items():
        if not isinstance(factors, dict):
            yield f"{where}.factors.{label} is {factors!r}: give a mapping of keys to factors"


def _is_label(value: Any) -> bool:
    """Whether a value can stand in a cell of trials.csv, and in a study."""
    return value is None or isinstance(value, str | int | float)


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, or of one of a union; YAML's truth values count as no numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)
