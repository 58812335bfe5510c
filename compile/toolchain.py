"""The C compiler that links kernels: the machine's own, or one for another processor family.

A cross compiler is Debian's, or the one in the Python package `ziglang`, whichever is installed.

Linking happens in a folder of its own with relative names, without time stamps or build ids, so
that the same inputs give the same bytes. C sources that all programs of a target share are compiled
once and kept in the cache folder.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from bignas.compile.elf import align_code
from bignas.device_db.errors import MissingToolError, ToolchainError
from bignas.device_db.files import cache_folder, write_atomically
from bignas.device_db.probe import probe_local
from bignas.device_db.target import MachineArchitecture, Target

__all__ = ["link_program", "link_shared_library", "link_standalone"]

FLAGS = ("-O2", "-fPIC", "-std=c11", "-s", "-Wl,--build-id=none")
SHARED_FLAGS = ("-shared", "-Wl,--as-needed", "-Wl,-z,noexecstack")
LIBRARIES = ("-ldl", "-lm", "-lpthread")
# no C library: a program that runs in an empty file system
STANDALONE_FLAGS = (
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-Wl,-z,noexecstack",
    "-Wl,-e,bignas_start",
)
# atomic operations of threads would be calls into a library that the runner does not link
INLINE_ATOMICS = "-mno-outline-atomics"
# for the rare kernel that calls a function which the runner does not bring itself
STATIC_FLAGS = ("-static", "-fno-builtin", "-Wl,-z,noexecstack")
CODE_ALIGNMENT = 64  # bytes, of each kernel: a line of the instruction cache
OUTPUT = "output"
FOLDER_PREFIX = "bignas-link-"


@dataclass(frozen=True, slots=True)
class CrossCompiler:
    """Debian's cross compiler, the package that brings it, and zig's names for the same target.

    `zig_headers` are folders of zig's own C headers, which it does not search by itself when a
    program links no C library.
    """

    command: str
    package: str
    zig_target: str
    zig_headers: tuple[str, ...]


CROSS_COMPILERS: Mapping[MachineArchitecture, CrossCompiler] = {
    MachineArchitecture.X86_64: CrossCompiler(
        "x86_64-linux-gnu-gcc",
        "gcc-x86-64-linux-gnu",
        "x86_64-linux-gnu",
        ("x86_64-linux-musl", "x86-linux-musl", "x86-linux-any"),
    ),
    MachineArchitecture.AARCH64: CrossCompiler(
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu",
        "aarch64-linux-gnu",
        ("aarch64-linux-musl", "aarch64-linux-any"),
    ),
    MachineArchitecture.ARM: CrossCompiler(
        "arm-linux-gnueabihf-gcc",
        "gcc-arm-linux-gnueabihf",
        "arm-linux-gnueabihf",
        ("arm-linux-musl", "arm-linux-any"),
    ),
    MachineArchitecture.RISCV64: CrossCompiler(
        "riscv64-linux-gnu-gcc",
        "gcc-riscv64-linux-gnu",
        "riscv64-linux-gnu",
        ("riscv64-linux-musl", "riscv-linux-any"),
    ),
}
ZIG = "ziglang"
_ZIG_COMMON_HEADERS = ("generic-musl", "any-linux-any")


def link_shared_library(
    sources: Mapping[str, bytes], objects: Sequence[Path], target: Target
) -> bytes:
    """Compile C sources (by file name, headers and data files among them), link, return bytes.

    Raises:
        ToolchainError: no compiler for the target, or it failed.
    """
    return _link(sources, objects, target, flags=SHARED_FLAGS)


def link_program(sources: Mapping[str, bytes], target: Target) -> bytes:
    """Compile C sources to a program that uses the C library, and return its bytes.

    Raises:
        ToolchainError: no compiler for the target, or it failed.
    """
    return _link(sources, (), target)


def link_standalone(
    sources: Mapping[str, bytes],
    shared: Mapping[str, bytes],
    objects: Sequence[Path],
    target: Target,
    with_library: bool,
) -> bytes:
    """Compile C sources and link them with objects to a static program.

    `shared` are sources and headers that other programs of the target have too: each is compiled
    once. The program holds the C library when `with_library` asks for that, else it starts at
    `bignas_start`.

    Raises:
        ToolchainError: no compiler for the target, or it failed.
        OutputError: the cache cannot be written.
    """
    standalone = not with_library
    flags = STANDALONE_FLAGS if standalone else STATIC_FLAGS
    headers = {name: content for name, content in shared.items() if not _is_unit(name)}
    compiled = _compiled_once(shared, target, standalone, flags)
    return _link({**sources, **headers}, (*compiled, *objects), target, standalone, flags)


def _link(
    sources: Mapping[str, bytes],
    objects: Sequence[Path],
    target: Target,
    standalone: bool = False,
    flags: Sequence[str] = (),
) -> bytes:
    command = _command(target, standalone, flags)
    libraries = () if standalone else LIBRARIES
    try:
        with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
            folder = Path(name)
            compiled = _compile_in(folder, command, sources)
            kernels = [f"kernel{number:04d}.o" for number in range(len(objects))]
            for path, kernel in zip(objects, kernels, strict=True):
                (folder / kernel).write_bytes(align_code(path.read_bytes(), CODE_ALIGNMENT))
            _run([*command, "-o", OUTPUT, *compiled, *kernels, *libraries], folder)
            return (folder / OUTPUT).read_bytes()
    except OSError as error:
        raise ToolchainError(f"linking failed: {error.strerror or error}") from error


def _compiled_once(
    sources: Mapping[str, bytes], target: Target, standalone: bool, flags: Sequence[str]
) -> list[Path]:
    """Compile C sources, unless the cache folder has their objects; return these."""
    command = _command(target, standalone, flags)
    version = _version(tuple(_compiler(target, standalone)))
    digest = hashlib.sha256(repr((version, command)).encode())
    for name, content in sorted(sources.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    kept = cache_folder() / f"units-{digest.hexdigest()[:16]}"
    paths = {name: kept / f"{name}.o" for name in sources if _is_unit(name)}
    if not all(path.exists() for path in paths.values()):
        try:
            with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
                folder = Path(name)
                _compile_in(folder, command, sources)
                compiled = {path: (folder / path.name).read_bytes() for path in paths.values()}
        except OSError as error:
            raise ToolchainError(f"compiling failed: {error.strerror or error}") from error
        for path, content in compiled.items():
            write_atomically(path, content)
    return list(paths.values())


def _compile_in(folder: Path, command: Sequence[str], sources: Mapping[str, bytes]) -> list[str]:
    """Compile the C files among sources in a folder; return the names of their objects there."""
    for file, content in sources.items():
        (folder / file).write_bytes(content)
    units = [file for file in sources if _is_unit(file)]
    commands = [[*command, "-c", "-o", f"{unit}.o", unit] for unit in units]
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(_run, commands, [folder] * len(commands)):
            pass
    return [f"{unit}.o" for unit in units]


@lru_cache
def _version(compiler: tuple[str, ...]) -> str:
    """What a compiler says of itself. Raises ToolchainError with what it says instead."""
    result = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ToolchainError(f"{compiler[0]} failed: {(result.stderr.splitlines() or ['?'])[0]}")
    return result.stdout


def _is_unit(file: str) -> bool:
    """Whether a source is compiled by itself: no header, and no data that one includes."""
    return file.endswith(".c")


def _command(target: Target, standalone: bool, flags: Sequence[str]) -> list[str]:
    """The compiler with all its options."""
    more = (INLINE_ATOMICS,) if target.architecture is MachineArchitecture.AARCH64 else ()
    return [*_compiler(target, standalone), *FLAGS, *flags, *more]


def _run(command: Sequence[str], folder: Path) -> None:
    """Run the compiler in a folder. Raises ToolchainError with what it says."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "error:" in line), lines[0])
        called = "zig cc" if ZIG in command else command[0]
        raise ToolchainError(f"{called} failed: {reason}")


def _compiler(target: Target, standalone: bool) -> list[str]:
    if target.architecture is not probe_local().target.architecture:
        return _cross_compiler(target, standalone)
    name, *options = os.environ.get("CC", "").split() or ["cc"]
    path = shutil.which(name)
    if path is None:
        raise MissingToolError(
            f"no C compiler {name!r} found; install one (Debian: apt-get install gcc libc6-dev)"
            " or set CC"
        )
    return [path, *options]


def _cross_compiler(target: Target, standalone: bool) -> list[str]:
    if "linux" not in target.triple:
        raise ToolchainError(f"no linker for {target.triple}: bundles are for Linux")
    cross = CROSS_COMPILERS[target.architecture]
    path = shutil.which(cross.command)
    if path is not None:
        return [path]
    found = importlib.util.find_spec(ZIG)
    if found is not None:
        command = [sys.executable, "-m", ZIG, "cc", "-target", cross.zig_target]
        return [*command, *(_zig_headers(found, cross) if standalone else ())]
    raise MissingToolError(
        f"no linker for {target.architecture} on this machine; install a cross compiler"
        f" (Debian: apt-get install {cross.package}, or pip install {ZIG})"
    )


def _zig_headers(package: ModuleSpec, cross: CrossCompiler) -> list[str]:
    options: list[str] = []
    for folder in package.submodule_search_locations or ():
        for name in (*cross.zig_headers, *_ZIG_COMMON_HEADERS):
            options += ["-isystem", str(Path(folder) / "lib" / "libc" / "include" / name)]
    return options
