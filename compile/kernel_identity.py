"""What a kernel is called, and the versions of what makes its machine code.

Without importing the compiler: that takes seconds, and networks of cached kernels do without.
"""

import hashlib
from functools import lru_cache
from importlib import resources
from importlib.metadata import version

from bignas.compile.schedule import Schedule
from bignas.device_db.workload import Workload

__all__ = ["code_hash", "compiler_version", "fallback_hash", "symbol_of"]

_COMPILER = "apache-tvm"
_MACHINE_CODE = "machine_code.py"
_GENERATORS = ("codegen.py", "inverted_bottleneck.py", _MACHINE_CODE, "schedule.py", "winograd.py")
"""Files that decide about kernels, besides those in the folder of their loop nests."""
_FALLBACK_GENERATORS = ("fallback_object.py", _MACHINE_CODE)


def symbol_of(workload: Workload, schedule: Schedule) -> str:
    """Return the C symbol of a kernel, the same on every machine."""
    text = f"{workload.key} {schedule.to_text()}"
    return "bignas_k_" + hashlib.sha256(text.encode()).hexdigest()[:20]


def compiler_version() -> str:
    """Return the compiler that kernels are built with, as it stands in provenance records."""
    return f"{_COMPILER} {version(_COMPILER)}"


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return the hash of everything that decides a kernel's machine code but its arguments.

    Measurements of kernels built by other generators, or by another compiler, are stale.
    """
    digest = hashlib.sha256(compiler_version().encode())
    room = resources.files("bignas.compile")
    for part in _GENERATORS:
        digest.update(room.joinpath(part).read_bytes())
    for module in sorted(
        (one for one in room.joinpath("kernels").iterdir() if one.name.endswith(".py")),
        key=lambda one: one.name,
    ):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def fallback_hash() -> str:
    """Return the hash of what decides a fallback's machine code but the kernel and the target."""
    digest = hashlib.sha256(compiler_version().encode())
    for part in _FALLBACK_GENERATORS:
        digest.update(resources.files("bignas.compile").joinpath(part).read_bytes())
    return digest.hexdigest()[:16]
