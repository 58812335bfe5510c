"""Training recipes by name, or from a TOML file: the options of `TrainConfig` that they set."""

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from bignas.device_db.errors import InputError
from bignas.supernet.recipe import TrainConfig

__all__ = ["built_in_recipes", "load_recipe"]

_SUFFIX = ".toml"


def built_in_recipes() -> tuple[str, ...]:
    """Names of the recipes that ship with the package, sorted."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def load_recipe(name_or_path: str) -> dict[str, Any]:
    """The options that a built-in recipe or a TOML file sets.

    Raises InputError, in one line, when there is neither, or when an option is unknown or makes no
    sense.
    """
    known = built_in_recipes()
    source: Traversable | Path = Path(name_or_path)
    if name_or_path in known:
        source = _folder() / f"{name_or_path}{_SUFFIX}"
    try:
        options = tomllib.loads(source.read_text(encoding="utf-8"))
        TrainConfig.from_dict(options)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"no recipe {name_or_path!r}: give a built-in name ({', '.join(known)}) or the path of"
            " a TOML file"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read recipe {name_or_path}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"recipe {name_or_path}: {error}") from None
    except ValueError as error:  # neither UTF-8 nor TOML
        raise InputError(f"recipe {name_or_path} is not valid TOML: {error}") from None
    return options


def _folder() -> Traversable:
    return resources.files("bignas.supernet") / "recipe_files"
