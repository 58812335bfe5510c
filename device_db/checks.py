"""Checks of plain values that records are read from; what is wrong is said in one line."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Any, TypeVar

from bignas.device_db.errors import BignasError

__all__ = [
    "digest_of",
    "exact_keys",
    "member_of",
    "number_of",
    "require_integer",
    "text_of",
    "text_or_none",
    "texts_of",
]

_Enum = TypeVar("_Enum", bound=StrEnum)


def require_integer(name: str, value: object, least: int, error: type[BignasError]) -> None:
    """Raise the error unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise error(f"{name} must be a whole number of at least {least}, got {value!r}")


def member_of(kind: type[_Enum], name: str, value: object, error: type[BignasError]) -> _Enum:
    """Return the member of an enumeration that the value names."""
    try:
        return kind(str(value))
    except ValueError as cause:
        choices = ", ".join(kind)
        raise error(f"unsupported {name} {value!r}, expected one of: {choices}") from cause


def text_of(name: str, value: object, error: type[BignasError]) -> str:
    """Return the value, which must be text."""
    if not isinstance(value, str):
        raise error(f"{name} must be text, got {value!r}")
    return value


def text_or_none(name: str, value: object, error: type[BignasError]) -> str | None:
    """Return the value, which must be text or None."""
    return None if value is None else text_of(name, value, error)


def number_of(name: str, value: object, error: type[BignasError]) -> float:
    """Return the value, which must be a number, as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise error(f"{name} must be a number, got {value!r}")
    return float(value)


def texts_of(name: str, value: object, error: type[BignasError]) -> tuple[str, ...]:
    """Return the texts of the value, which must be a list of such."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise error(f"{name} must be a list of texts, got {value!r}")
    return tuple(text_of(name, item, error) for item in value)


def exact_keys(cls: type[Any], data: Mapping[str, Any], error: type[BignasError]) -> dict[str, Any]:
    """Return a copy of `data` after checking that its keys are exactly the fields of `cls`."""
    if not isinstance(data, Mapping):
        raise error(f"a {cls.__name__.lower()} must be an object, got {data!r}")
    names = {field.name for field in fields(cls)}
    if missing := sorted(names - data.keys()):
        raise error(f"a {cls.__name__.lower()} lacks {', '.join(missing)}")
    if unknown := sorted(str(key) for key in data.keys() - names):
        raise error(f"a {cls.__name__.lower()} has unknown {', '.join(unknown)}")
    return dict(data)


def digest_of(value: Mapping[str, Any]) -> str:
    """Return the hash of a JSON object, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
