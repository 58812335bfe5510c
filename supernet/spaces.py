"""Search spaces by name, or from a TOML file.

A space file holds the keys of `SearchSpace.to_dict`. A list of options may also be written as a
range, `channels = { min = 24, max = 40, step = 8 }`, which includes its end. `name` may be left
out; it is the file's name then.
"""

import tomllib
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from bignas.device_db.errors import SpaceError, UnknownSpaceError
from bignas.supernet.space import SearchSpace

__all__ = ["built_in_spaces", "load_space"]

_SUFFIX = ".toml"
_RANGE_KEYS = {"min", "max", "step"}
_MOST_OPTIONS = 4096


def built_in_spaces() -> tuple[str, ...]:
    """Names of the spaces that ship with the package, sorted."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def load_space(name_or_path: str) -> SearchSpace:
    """Load a built-in space, or one from a TOML file.

    Raises UnknownSpaceError when there is neither, and SpaceError naming file, key and problem when
    the file is malformed.
    """
    known = built_in_spaces()
    if name_or_path in known:
        text = (_folder() / f"{name_or_path}{_SUFFIX}").read_text(encoding="utf-8")
        return _parse(text, name_or_path, name_or_path)
    path = Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UnknownSpaceError(
            f"no search space {name_or_path!r}: give a built-in name ({', '.join(known)})"
            " or the path of a TOML file"
        ) from None
    except (OSError, ValueError) as error:
        raise SpaceError(f"cannot read space file {name_or_path}: {_reason(error)}") from None
    return _parse(text, path.stem, name_or_path)


def _parse(text: str, default_name: str, origin: str) -> SearchSpace:
    try:
        data = tomllib.loads(text)
        return SearchSpace.from_dict({"name": default_name, **_expand(data)})
    except tomllib.TOMLDecodeError as error:
        raise SpaceError(f"{origin} is not valid TOML: {error}") from None
    except SpaceError as error:
        raise SpaceError(f"{origin}: {error}") from None


def _expand(table: Mapping[str, Any]) -> dict[str, Any]:
    """Write every range in a table, and in the tables of its stages, as a list."""
    expanded: dict[str, Any] = {}
    for key, value in table.items():
        if key == "stages" and isinstance(value, list):
            expanded[key] = [_expand_stage(index, stage) for index, stage in enumerate(value)]
        else:
            expanded[key] = _options(key, value) if isinstance(value, dict) else value
    return expanded


def _expand_stage(index: int, stage: object) -> object:
    if not isinstance(stage, dict):
        return stage
    try:
        return _expand(stage)
    except SpaceError as error:
        raise SpaceError(f"stages[{index}]: {error}") from None


def _options(key: str, value: Mapping[str, object]) -> list[int]:
    if not {"min", "max"} <= value.keys() <= _RANGE_KEYS:
        raise SpaceError(f"{key} must be a list of integers or a table of min, max and step")
    numbers = {}
    for bound, number in value.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise SpaceError(f"{key}.{bound} must be a positive integer, not {number!r}")
        numbers[bound] = number
    low, high, step = numbers["min"], numbers["max"], numbers.get("step", 1)
    if low > high:
        raise SpaceError(f"{key}: min {low} is greater than max {high}")
    if (high - low) % step:
        raise SpaceError(f"{key}: step {step} does not lead from min {low} to max {high}")
    if (high - low) // step >= _MOST_OPTIONS:
        raise SpaceError(f"{key}: the range holds more than {_MOST_OPTIONS} options")
    return list(range(low, high + 1, step))


def _folder() -> Traversable:
    return resources.files("bignas.supernet") / "space_files"


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
