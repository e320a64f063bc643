"""How the model's dataclasses refuse a value: one line, the field as a user writes it, what is allowed."""

from typing import Any, TypeGuard, get_args

from elas_lightning.errors import UserError


def refuse(key: str, value: object, allowed: str) -> UserError:
    """The error to raise for the field ``model.config.<key>``."""
    return UserError(f"model.config.{key} = {value!r} is not possible: {allowed}")


def check_choice(key: str, value: object, literal: Any) -> None:
    """Refuse what is none of a ``Literal``'s values."""
    allowed = get_args(literal)
    if value not in allowed:
        raise refuse(key, value, f"choose one of {', '.join(map(str, allowed))}")


def is_int(value: object) -> bool:
    """Whether a value is an integer and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_int(key: str, value: object, minimum: int) -> None:
    """Refuse what is no integer of at least ``minimum``."""
    if not is_int(value) or value < minimum:  # type: ignore[operator]
        raise refuse(key, value, f"give an integer of at least {minimum}")


def check_positive(key: str, value: object) -> None:
    """Refuse what is no finite number above 0."""
    if not is_number(value) or not 0 < value < float("inf"):
        raise refuse(key, value, "give a finite number above 0")


def check_not_negative(key: str, value: object) -> None:
    """Refuse what is no finite number of at least 0."""
    if not is_number(value) or not 0 <= value < float("inf"):
        raise refuse(key, value, "give a finite number of at least 0")
