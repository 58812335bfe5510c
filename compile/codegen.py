"""From a workload and a schedule to an object file: the whole pass list, in one place.

    1. emit       the loop nest of the operator, written for its shapes (compile/kernels)
    2. bind       the target; buffers become pointers, indices 32-bit
    3. vectorise  loops and unrolled blocks become straight code
    4. lower      intrinsics of the target
    5. LLVM       machine code, written as a relocatable object file

Step 5 leaves one plain C symbol in each object and no reference to a TVM runtime: a network is
linked from such objects, so the code that was measured is, byte for byte, the code that ships.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from bignas.compile.kernels import bottleneck, channelwise, pointwise, pooling, spatial
from bignas.compile.schedule import Schedule
from bignas.device_db.errors import ModelError, TargetError, ToolchainError
from bignas.device_db.records import Layout, Operator, Target, Workload

__all__ = [
    "KernelFamily",
    "build_object",
    "code_hash",
    "compiler_version",
    "pack_weights",
    "symbol_of",
]

Emit = Callable[[str, Workload, Schedule, int], Any]
Pack = Callable[[Workload, Schedule, int, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class KernelFamily:
    """How kernels of an operator are written, and how their weights are laid out."""

    emit: Emit
    pack: Pack | None = None


FAMILIES: Mapping[Operator, KernelFamily] = {
    Operator.POINTWISE: KernelFamily(pointwise.emit, pointwise.pack),
    Operator.CONV: KernelFamily(spatial.emit_conv, spatial.pack_conv),
    Operator.DEPTHWISE: KernelFamily(spatial.emit_depthwise, spatial.pack_depthwise),
    Operator.MAX_POOL: KernelFamily(pooling.emit_max_pool),
    Operator.AVERAGE_POOL: KernelFamily(pooling.emit_average_pool),
    Operator.GLOBAL_POOL: KernelFamily(channelwise.emit_global_pool),
    Operator.SCALE: KernelFamily(channelwise.emit_scale),
    Operator.INVERTED_BOTTLENECK: KernelFamily(bottleneck.emit, bottleneck.pack),
}


def symbol_of(workload: Workload, schedule: Schedule) -> str:
    """Return the C symbol of a kernel, the same on every machine."""
    text = f"{workload.key} {schedule.to_text()}"
    return "bignas_k_" + hashlib.sha256(text.encode()).hexdigest()[:20]


def pack_weights(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Return weights [out, in, k, k] as the kernel reads them: float32, flat."""
    pack = FAMILIES[workload.operator].pack
    if pack is None:
        return np.zeros(0, np.float32)
    return np.ascontiguousarray(pack(workload, schedule, lanes, weights), np.float32)


def build_object(workload: Workload, schedule: Schedule, target: Target) -> bytes:
    """Return the object file of a kernel.

    Raises:
        ModelError: a workload that no kernel is written for.
        TargetError: a processor that the compiler does not know.
        ToolchainError: LLVM refuses the target or the code.
    """
    if workload.operator is Operator.POINTWISE and workload.stride != 1:
        raise ModelError(f"no kernel for {workload.key}: a strided pointwise is a conv of kernel 1")
    if workload.operator is not Operator.CONV and workload.input_layout is not Layout.NHWC:
        raise ModelError(f"no kernel for {workload.key}: only a conv reads planar images")
    _check_processor(target)
    name = symbol_of(workload, schedule)
    function = FAMILIES[workload.operator].emit(name, workload, schedule, target.vector_lanes)
    try:
        tvm_target = tvm.target.Target(target.to_tvm())
        module = _passes(tvm_target)(tvm.IRModule({name: function}))
        library = tvm.get_global_func("target.build.llvm")(module, tvm_target)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.o"
            library.write_to_file(str(path), "o")
            return path.read_bytes()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ToolchainError(f"cannot build {workload.key} for {target.cpu}: {reason}") from error


@lru_cache
def _check_processor(target: Target) -> None:
    """LLVM takes a processor it does not know for a generic one, and only says so on stderr."""
    generic = tvm.target.Target({"kind": "llvm", "mtriple": target.triple})
    known = tvm.get_global_func("target.llvm_get_cpu_archlist")(generic)
    if target.cpu not in known:
        raise TargetError(f"unknown processor {target.cpu!r} of {target.triple}")


def _passes(target: Any) -> Any:
    return tvm.ir.transform.Sequential(
        [
            tirx.transform.BindTarget(target),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.LowerIntrin(),
        ]
    )


def compiler_version() -> str:
    """Return the compiler that kernels are built with, as it stands in provenance records."""
    return f"apache-tvm {tvm.__version__}"


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return the hash of everything that decides a kernel's machine code but its arguments.

    Measurements of kernels built by other generators, or by another compiler, are stale.
    """
    digest = hashlib.sha256(compiler_version().encode())
    room = resources.files("bignas.compile")
    for part in ("codegen.py", "inverted_bottleneck.py", "schedule.py"):
        digest.update(room.joinpath(part).read_bytes())
    for module in sorted(
        (one for one in room.joinpath("kernels").iterdir() if one.name.endswith(".py")),
        key=lambda one: one.name,
    ):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:16]
