"""Runs the native runner of a bundle for another processor family under qemu's user mode.

Emulation proves numerics. It says nothing about latency, so nothing but the self-check is run.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bignas.device_db.errors import BundleError, VerificationError
from bignas.device_db.probe import probe_local
from bignas.device_db.target import MachineArchitecture, Target

__all__ = ["emulated_self_check", "emulator_of", "is_foreign", "read_self_check"]

PACKAGE = "qemu-user-static"
TIMEOUT_SECONDS = 1200.0
BAD_INPUT = 2  # exit code of the runner
_OPTIONS: Mapping[MachineArchitecture, tuple[str, ...]] = {
    MachineArchitecture.RISCV64: ("-cpu", "rv64,v=true,vext_spec=v1.0,vlen=128"),
}


def is_foreign(target: Target) -> bool:
    """Tell whether a target is of another processor family than this machine."""
    return target.architecture is not probe_local().target.architecture


def emulator_of(target: Target) -> list[str] | None:
    """Return the command that runs programs of a target's family, or None when it is missing."""
    for suffix in ("-static", ""):
        path = shutil.which(f"qemu-{target.architecture}{suffix}")
        if path is not None:
            return [path, *_OPTIONS.get(target.architecture, ())]
    return None


def emulated_self_check(runner: Path, target: Target) -> tuple[bool, float, float, int]:
    """Run a bundle's self-check; return ok, largest error, agreement of classes, images.

    Raises:
        BundleError: no emulator, or the runner refuses the files beside it or the processor.
        VerificationError: the program crashed or hangs.
    """
    emulator = emulator_of(target)
    if emulator is None:
        raise BundleError(
            f"the bundle is built for {target.architecture}, this machine is"
            f" {probe_local().target.architecture}; to verify it under emulation install"
            f" qemu (Debian: apt-get install {PACKAGE})"
        )
    try:
        result = subprocess.run(
            [*emulator, str(runner.absolute()), "--self-check", "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(f"the emulated self-check of {runner} hangs") from error
    except OSError as error:
        raise BundleError(f"cannot start {emulator[0]}: {error.strerror or error}") from error
    return read_self_check(result.returncode, result.stdout, result.stderr, f"emulated {runner}")


def read_self_check(
    status: int, output: str, errors: str, runner: str
) -> tuple[bool, float, float, int]:
    """Return what `run --self-check --json` said: ok, largest error, agreement of classes, images.

    Raises:
        BundleError: the runner refuses the files beside it or the processor.
        VerificationError: it crashed.
    """
    if status == BAD_INPUT:
        lines = [one for one in errors.splitlines() if one.startswith("error: ")]
        raise BundleError(lines[-1].removeprefix("error: ") if lines else f"{runner} is damaged")
    try:
        found = json.loads(output)
        largest = found["max_abs_error"]
        largest = float("inf") if largest is None else float(largest)
        return bool(found["ok"]), largest, float(found["top1_agreement"]), int(found["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(
            f"the self-check of {runner} stopped with status {status}"
        ) from error
