"""The C compiler of the machine, which links kernels to shared libraries.

Linking happens in a folder of its own with relative names, without time stamps or build ids, so
that the same inputs give the same bytes.
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

__all__ = ["link_program", "link_shared_library"]

FLAGS = ("-O2", "-fPIC", "-std=c11", "-s", "-Wl,--build-id=none")
SHARED_FLAGS = ("-shared", "-Wl,--as-needed", "-Wl,-z,noexecstack")
OUTPUT = "output"


def link_shared_library(
    sources: Mapping[str, bytes], objects: Sequence[Path], target: Target
) -> bytes:
    """Compile C sources (by file name, headers and data files among them), link, return bytes.

    Raises:
        ToolchainError: no compiler for the target, or it failed.
    """
    return _link(sources, objects, target, SHARED_FLAGS)


def link_program(sources: Mapping[str, bytes], target: Target) -> bytes:
    """Compile C sources to a program and return its bytes.

    Raises:
        ToolchainError: no compiler for the target, or it failed.
    """
    return _link(sources, (), target, ())


def _link(
    sources: Mapping[str, bytes], objects: Sequence[Path], target: Target, flags: Sequence[str]
) -> bytes:
    compiler = _compiler(target)
    try:
        return _link_in_folder(compiler, sources, objects, flags)
    except OSError as error:
        raise ToolchainError(f"linking failed: {error.strerror or error}") from error


def _link_in_folder(
    compiler: Sequence[str],
    sources: Mapping[str, bytes],
    objects: Sequence[Path],
    flags: Sequence[str],
) -> bytes:
    with tempfile.TemporaryDirectory(prefix="bignas-link-") as name:
        folder = Path(name)
        for file, content in sources.items():
            (folder / file).write_bytes(content)
        for number, path in enumerate(objects):
            shutil.copyfile(path, folder / f"kernel{number:04d}.o")
        units = [file for file in sources if file.endswith(".c")]
        kernels = [f"kernel{number:04d}.o" for number in range(len(objects))]
        command = [*compiler, *FLAGS, *flags, "-o", OUTPUT, *units, *kernels, "-ldl", "-lm"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no message"]
            reason = next((line for line in lines if "error:" in line), lines[0])
            raise ToolchainError(f"{compiler[0]} failed: {reason}")
        return (folder / OUTPUT).read_bytes()


def _compiler(target: Target) -> list[str]:
    if target.architecture is not probe_local().target.architecture:
        raise ToolchainError(
            f"no linker for {target.triple} on this machine; bundles are linked on their own"
            " architecture"
        )
    name, *options = os.environ.get("CC", "").split() or ["cc"]
    path = shutil.which(name)
    if path is None:
        raise ToolchainError(
            f"no C compiler {name!r} found; install one (Debian: apt-get install gcc libc6-dev)"
            " or set CC"
        )
    return [path, *options]
