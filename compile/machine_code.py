"""From a lowered module to an object file: LLVM, and what it says when it fails."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm

from bignas.device_db.errors import ToolchainError
from bignas.device_db.target import Target

__all__ = ["machine_code"]


def machine_code(key: str, target: Target, lower: Callable[[Any], Any]) -> bytes:
    """Return the relocatable object file of the module that `lower` makes for TVM's target.

    `key` names the kernel in messages.

    Raises:
        ToolchainError: TVM or LLVM refuses the target or the code.
    """
    try:
        tvm_target = tvm.target.Target(target.to_tvm())
        library = tvm.get_global_func("target.build.llvm")(lower(tvm_target), tvm_target)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.o"
            library.write_to_file(str(path), "o")
            return path.read_bytes()
    except (RuntimeError, ValueError, SyntaxError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ToolchainError(f"cannot build {key} for {target.cpu}: {reason}") from error
