"""From a lowered module to an object file: LLVM, and what it says when it fails."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm

from bignas.device_db.errors import ToolchainError
from bignas.device_db.target import Target

__all__ = ["ARRAY_ALIGNMENT", "machine_code"]

ARRAY_ALIGNMENT = 64
"""Of arrays on the stack, in bytes: a line of the cache, and the longest vector.

TVM aligns them to 16 at most, so that vectors straddle lines.
"""

_ARRAY = re.compile(r"(= alloca \[\d+ x \w+\], align) \d+")


def machine_code(key: str, target: Target, lower: Callable[[Any], Any]) -> bytes:
    """Return the relocatable object file of the module that `lower` makes for TVM's target.

    `key` names the kernel in messages.

    Raises:
        ToolchainError: TVM or LLVM refuses the target or the code.
    """
    try:
        tvm_target = tvm.target.Target(target.to_tvm())
        library = tvm.get_global_func("target.build.llvm")(lower(tvm_target), tvm_target)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = folder / "kernel.o"
            _with_aligned_arrays(library, folder).write_to_file(str(path), "o")
            return path.read_bytes()
    except (RuntimeError, ValueError, SyntaxError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ToolchainError(f"cannot build {key} for {target.cpu}: {reason}") from error


def _with_aligned_arrays(library: Any, folder: Path) -> Any:
    """Return the module with its arrays on the stack aligned to `ARRAY_ALIGNMENT`.

    `library` is optimised already, and only becomes machine code where it is written.
    """
    text, arrays = _ARRAY.subn(rf"\1 {ARRAY_ALIGNMENT}", library.inspect_source("ll"))
    if not arrays:
        return library
    path = folder / "kernel.ll"
    path.write_text(text)
    return tvm.runtime.load_module(str(path))
