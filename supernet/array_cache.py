"""Arrays that are costly to derive, kept in the cache folder and mapped into memory when read.

Several processes that read the same arrays share the memory. What cannot be read is derived again,
and a cache that cannot be written is no error.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bignas.device_db.errors import OutputError
from bignas.device_db.files import atomic_folder, cache_folder

__all__ = ["CachedArrays", "read_arrays", "write_arrays"]

_DESCRIPTION = "description.json"
_SUFFIX = ".npy"


@dataclass(frozen=True, eq=False)
class CachedArrays:
    """Named arrays, read-only, and what belongs to them, as JSON has it."""

    arrays: Mapping[str, np.ndarray]
    description: Mapping[str, Any]


def read_arrays(kind: str, key: str) -> CachedArrays | None:
    """Return what was written under that kind and key, or None."""
    folder = _folder(kind, key)
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        arrays = {
            path.name.removesuffix(_SUFFIX): np.load(path, mmap_mode="r", allow_pickle=False)
            for path in folder.glob(f"*{_SUFFIX}")
        }
    except (OSError, ValueError, EOFError):
        return None
    return CachedArrays(arrays, description) if isinstance(description, dict) else None


def write_arrays(kind: str, key: str, content: CachedArrays) -> None:
    """Keep the arrays for later processes, where the cache folder can be written."""
    with contextlib.suppress(OutputError), atomic_folder(_folder(kind, key)) as folder:
        for name, array in content.arrays.items():
            np.save(folder / f"{name}{_SUFFIX}", array, allow_pickle=False)
        text = json.dumps(content.description)
        (folder / _DESCRIPTION).write_text(text, encoding="utf-8")


def _folder(kind: str, key: str) -> Path:
    return cache_folder() / kind / key
