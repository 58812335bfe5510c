"""Fields of spaces and stages: between JSON or TOML and values, and the checks of these."""

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from bignas.device_db.errors import SpaceError
from bignas.device_db.workload import Activation

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "LIMITS",
    "check_activation",
    "check_name",
    "check_number",
    "check_odd",
    "check_options",
    "read_fields",
    "to_plain",
]

LIMITS = {
    "resolutions": 2048,
    "channels": 8192,
    "depths": 64,
    "kernels": 15,
    "expands": 32,
    "stride": 4,
    "classes": 100_000,
}

_LEFT_OUT_BY_DEFAULT = frozenset({"block"})
_Kind = TypeVar("_Kind", bound=StrEnum)


def to_plain(value: "DataclassInstance") -> dict[str, Any]:
    """Public fields of a space or a stage as JSON types.

    Choices that were added later are left out where they have their default: hashes of spaces that
    do without them stay what they were.
    """
    plain: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        content = getattr(value, item.name)
        if not item.init or (item.name in _LEFT_OUT_BY_DEFAULT and content == item.default):
            continue
        if item.name == "stages":
            content = [stage.to_dict() for stage in content]
        elif isinstance(content, tuple):
            content = list(content)
        elif isinstance(content, StrEnum):
            content = content.value
        plain[item.name] = content
    return plain


def read_fields(data: object, kind: type[Any], what: str) -> dict[str, Any]:
    """Check the keys of a JSON object against a dataclass and turn lists into tuples."""
    if not isinstance(data, Mapping):
        raise SpaceError(f"{what} must be a table of keys, not {data!r}")
    known = {item.name: item for item in dataclasses.fields(kind) if item.init}
    for key in data:
        if key not in known:
            raise SpaceError(f"unknown key {key!r}, known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name not in data:
            if item.default is dataclasses.MISSING:
                raise SpaceError(f"key {name!r} is missing")
            continue
        content = data[name]
        if name.endswith("activation"):
            content = _member(Activation, name, content)
        elif isinstance(item.default, StrEnum):
            content = _member(type(item.default), name, content)
        values[name] = tuple(content) if isinstance(content, list) else content
    return values


def _member(kind: type[_Kind], name: str, content: object) -> _Kind:
    try:
        return kind(str(content))
    except ValueError:
        allowed = ", ".join(member.value for member in kind)
        raise SpaceError(f"{name} = {content!r} is unknown, allowed: {allowed}") from None


def check_number(name: str, value: object, limit: int) -> None:
    """An integer from 1 to the limit; else SpaceError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise SpaceError(f"{name} must be an integer from 1 to {limit}, not {value!r}")


def check_options(name: str, options: object, limit: int) -> None:
    """Ascending integers from 1 to the limit, at least one; else SpaceError."""
    if not isinstance(options, tuple) or not options:
        raise SpaceError(f"{name} must be a list of at least one integer, not {options!r}")
    for option in options:
        check_number(f"every entry of {name}", option, limit)
    if list(options) != sorted(set(options)):
        raise SpaceError(f"{name} must ascend without repetition, not {list(options)}")


def check_name(name: object) -> None:
    """A text that is not empty; else SpaceError."""
    if not isinstance(name, str) or not name:
        raise SpaceError(f"name must be a text of at least one character, not {name!r}")


def check_odd(name: str, kernels: tuple[int, ...]) -> None:
    """Odd kernels; else SpaceError."""
    for kernel in kernels:
        if kernel % 2 == 0:
            raise SpaceError(f"{name} must be odd, not {kernel}")


def check_activation(name: str, value: object) -> None:
    """An activation; else SpaceError."""
    if not isinstance(value, Activation):
        raise SpaceError(f"{name} must be an activation, not {value!r}")
