"""What tests need beyond Python: cross compilers and emulators; without them they are skipped."""

import os
import shutil

import pytest

from bignas.compile.emulator import PACKAGE, emulator_of, is_foreign
from bignas.compile.toolchain import CROSS_COMPILERS
from bignas.device_db.presets import PRESETS
from bignas.device_db.target import Target

__all__ = ["FOREIGN", "require_command", "require_cross_tools"]

FOREIGN = [name for name, target in PRESETS.items() if is_foreign(target)]


def require_command(command: str, package: str) -> None:
    """Skip the test where a program is missing; fail where continuous integration runs."""
    if shutil.which(command) is not None:
        return
    message = f"{command} is missing: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def require_cross_tools(target: Target) -> None:
    """Ask for the cross compiler and the emulator of a target."""
    cross = CROSS_COMPILERS[target.architecture]
    require_command(cross.command, cross.package)
    if emulator_of(target) is None:
        require_command(f"qemu-{target.architecture}-static", PACKAGE)
