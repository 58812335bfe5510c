"""From a workload and a schedule to an object file: the whole pass list, in one place.

    1. emit       the loop nest of the operator, written for its shapes (compile/kernels)
    2. bind       the target; buffers become pointers, indices 32-bit
    3. vectorise  loops and unrolled blocks become straight code
    4. lower      intrinsics of the target
    5. LLVM       machine code, written as a relocatable object file

Step 5 leaves one plain C symbol in each object and no reference to a TVM runtime: a network is
linked from such objects, so the code that was measured is, byte for byte, the code that ships.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import tvm
from tvm import tirx

from bignas.compile.kernel_identity import symbol_of
from bignas.compile.kernels import bottleneck, channelwise, pointwise, pooling, spatial, winograd
from bignas.compile.machine_code import machine_code
from bignas.compile.schedule import Schedule
from bignas.device_db.errors import ModelError, TargetError
from bignas.device_db.target import Target
from bignas.device_db.workload import Layout, Operator, Workload

__all__ = ["build_object"]

Emit = Callable[[str, Workload, Schedule, int], Any]


def _emit_conv(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    emit = winograd.emit if schedule.winograd_side else spatial.emit_conv
    return emit(name, workload, schedule, lanes)


EMITTERS: Mapping[Operator, Emit] = {
    Operator.POINTWISE: pointwise.emit,
    Operator.CONV: _emit_conv,
    Operator.DEPTHWISE: spatial.emit_depthwise,
    Operator.MAX_POOL: pooling.emit_max_pool,
    Operator.AVERAGE_POOL: pooling.emit_average_pool,
    Operator.GLOBAL_POOL: channelwise.emit_global_pool,
    Operator.SCALE: channelwise.emit_scale,
    Operator.INVERTED_BOTTLENECK: bottleneck.emit,
}


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
    function = EMITTERS[workload.operator](name, workload, schedule, target.vector_lanes)
    return machine_code(
        workload.key,
        target,
        lambda tvm_target: _passes(tvm_target)(tvm.IRModule({name: function})),
    )


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
