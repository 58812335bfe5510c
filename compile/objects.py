"""A folder of built kernels, so that a network is linked instead of compiled.

Keyed by kernel generators, target, workload and schedule; an object that is missing is built again
and, since builds are deterministic, comes out the same. The compiler is imported when something is
missing.
"""

# ruff: noqa: PLC0415 - importing the compiler takes seconds, which networks of kept kernels save

import multiprocessing
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from bignas.compile.fallback import FallbackKernel
from bignas.compile.kernel_identity import code_hash, fallback_hash, symbol_of
from bignas.compile.schedule import Schedule
from bignas.device_db.errors import BignasError, TargetError
from bignas.device_db.files import cache_folder, write_atomically
from bignas.device_db.target import Target
from bignas.device_db.workload import Workload

__all__ = [
    "BuiltObject",
    "ObjectCache",
    "RequestedObject",
    "build_objects",
    "exit_with_parent",
]

RequestedObject = tuple[Workload, Schedule]
BuiltObject = tuple[Workload, Schedule, str | None]  # why building failed, if it did


class ObjectCache:
    """Objects of one target."""

    def __init__(self, target: Target, folder: Path | None = None) -> None:
        self.target = target
        root = folder if folder is not None else cache_folder() / "objects"
        self.folder = root / f"{code_hash()}-{target.digest}"

    def path(self, workload: Workload, schedule: Schedule) -> Path:
        """Return the object file of a kernel, built when it is missing.

        Raises:
            ToolchainError: the kernel cannot be built.
            OutputError: the cache cannot be written.
        """
        path = self.folder / f"{symbol_of(workload, schedule)}.o"
        if not path.exists():
            from bignas.compile.codegen import build_object

            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, build_object(workload, schedule, self.target))
        return path

    def fallback_path(self, kernel: FallbackKernel) -> Path:
        """Return the object file of a fallback kernel, built when it is missing.

        Raises:
            ToolchainError: the kernel cannot be built.
            OutputError: the cache cannot be written.
        """
        path = self.folder / f"{kernel.symbol}-{fallback_hash()}.o"
        if not path.exists():
            from bignas.compile.fallback_object import build_fallback

            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, build_fallback(kernel, self.target))
        return path


def build_objects(
    folder: Path, target: Target, requested: Sequence[RequestedObject]
) -> list[BuiltObject]:
    """Build kernels into the cache in `folder`; this is what worker processes run.

    It stands in this module because a worker imports what its function's module imports.

    Raises:
        TargetError: nothing can be built for the target.
    """
    cache = ObjectCache(target, folder)
    built: list[BuiltObject] = []
    for workload, schedule in requested:
        try:
            cache.path(workload, schedule)
            built.append((workload, schedule, None))
        except TargetError:
            raise
        except BignasError as error:
            built.append((workload, schedule, str(error)))
    return built


def exit_with_parent() -> None:
    """Make this worker process end when the one that started it ends, even by `kill -9`.

    A pool's workers hold each other's ends of the queue open, so that none of them would notice.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
