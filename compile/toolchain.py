"""The C compiler of the machine, which links kernels to shared libraries.

Linking happens in a folder of its own with relative names, without time stamps or build ids, so that
the same inputs give the same bytes.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bignas.device_db.errors import ToolchainError
from bignas.device_db.probe import probe_local
from bignas.device_db.records import Target

__all__ = ["link_shared_library"]

FLAGS = ("-O2", "-fPIC", "-std=c11", "-Wall", "-Werror")
LINK_FLAGS = ("-shared", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack")


def link_shared_library(
    sources: Mapping[str, bytes], objects: Sequence[Path], target: Target
) -> bytes:
    """Compile C sources (by file name; headers and data files may be among them), link, return bytes.

    Raises:
        ToolchainError: no compiler for the target, or it failed.
    """
    compiler = _compiler(target)
    with tempfile.TemporaryDirectory(prefix="bignas-link-") as name:
        folder = Path(name)
        for file, content in sources.items():
            (folder / file).write_bytes(content)
        for number, path in enumerate(objects):
            shutil.copyfile(path, folder / f"kernel{number:04d}.o")
        units = [file for file in sources if file.endswith(".c")]
        kernels = [f"kernel{number:04d}.o" for number in range(len(objects))]
        command = [compiler, *FLAGS, *LINK_FLAGS, "-o", "library.so", *units, *kernels]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[0]
            raise ToolchainError(f"{compiler} failed to link the kernels: {reason}")
        return (folder / "library.so").read_bytes()


def _compiler(target: Target) -> str:
    if target.architecture is not probe_local().target.architecture:
        raise ToolchainError(
            f"no linker for {target.triple} on this machine; bundles are linked on their own"
            " architecture"
        )
    name = os.environ.get("CC", "cc")
    path = shutil.which(name)
    if path is None:
        raise ToolchainError(
            f"no C compiler {name!r} found; install one (Debian: apt-get install gcc libc6-dev)"
            " or set CC"
        )
    return path
