"""Architectures as users name them: two words, a random draw, or a JSON file."""

import json
from pathlib import Path

import numpy as np

from bignas.device_db.errors import ArchitectureError
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["load_architectures"]

_FORMS = "a JSON file, smallest, biggest or random:N"
_MOST_RANDOM = 1_000_000


def load_architectures(
    text: str, space: SearchSpace, rng: np.random.Generator
) -> list[Architecture]:
    """Read `text` as "smallest", "biggest", "random:N" or the path of a JSON file.

    A file holds one architecture or a list of them (`Architecture.to_dict`). Random architectures
    are distinct and uniform. Raises ArchitectureError, in one line, for everything else and for
    architectures outside `space`.
    """
    if text == "smallest":
        return [space.smallest()]
    if text == "biggest":
        return [space.biggest()]
    if text.startswith("random:"):
        return _random(text.removeprefix("random:"), space, rng)
    return _read(Path(text), space)


def _random(number: str, space: SearchSpace, rng: np.random.Generator) -> list[Architecture]:
    most = min(space.size(), _MOST_RANDOM)
    count = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0
    if not 1 <= count <= most:
        raise ArchitectureError(f"random:{number}: N must be an integer from 1 to {most}")
    if 2 * count >= space.size():
        everything = list(space.architectures())
        return [everything[pick] for pick in rng.permutation(len(everything))[:count]]
    drawn: dict[Architecture, None] = {}
    while len(drawn) < count:  # each draw is new with a probability of more than one half
        drawn[space.sample(rng)] = None
    return list(drawn)


def _read(path: Path, space: SearchSpace) -> list[Architecture]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArchitectureError(f"no architecture file {path}: give {_FORMS}") from None
    except OSError as error:
        raise ArchitectureError(
            f"cannot read architecture file {path}: {error.strerror}, give {_FORMS}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArchitectureError(f"{path} is not valid JSON: {error}") from None
    entries = data if isinstance(data, list) else [data]
    if not entries:
        raise ArchitectureError(f"{path} holds an empty list of architectures")
    return [_parse(entry, index, path, space) for index, entry in enumerate(entries)]


def _parse(entry: object, index: int, path: Path, space: SearchSpace) -> Architecture:
    try:
        arch = Architecture.from_dict(entry)
        space.check(arch)
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}, architecture {index}: {error}") from None
    return arch
