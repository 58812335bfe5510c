"""From a fallback kernel to an object file: the whole pass list, in one place.

    1. read       the loop nest's text
    2. lower      stages and their reductions become plain loops
    3. pointers   parameters become pointers: a C function, as those of the templates
    4. simplify   flat buffers, 32-bit indices, intrinsics of the target
    5. LLVM       machine code, written as a relocatable object file

As in `compile/codegen`, the packed-function wrapper and TVM's allocator are left out of the list,
so that the object references no TVM runtime; at most the C library's mathematics.
"""

from typing import Any

import tvm
from tvm import s_tir, tirx

from bignas.compile.fallback import FallbackKernel
from bignas.compile.machine_code import machine_code
from bignas.device_db.target import Target

__all__ = ["build_fallback"]


def build_fallback(kernel: FallbackKernel, target: Target) -> bytes:
    """Return the object file of a fallback kernel.

    Raises:
        ToolchainError: LLVM refuses the target or the code.
    """
    return machine_code(kernel.key, target, lambda tvm_target: _lowered(kernel, tvm_target))


def _lowered(kernel: FallbackKernel, target: Any) -> Any:
    function = tvm.script.from_source(kernel.code)["main"]
    function = function.with_attr({"global_symbol": kernel.symbol, "tirx.noalias": True})
    module = _loops()(tvm.IRModule({kernel.symbol: function}))
    module = tvm.IRModule({kernel.symbol: _with_pointers(module[kernel.symbol])})
    return _passes(target)(module)


def _loops() -> Any:
    return tvm.ir.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.LowerOpaqueBlock(),
        ]
    )


def _with_pointers(function: Any) -> Any:
    """Return a function of plain pointers instead of one of tensors."""
    kind = tvm.ir.PointerType(tvm.ir.PrimType("float32"), "global")
    pointers = [tirx.Var(f"pointer{index}", kind) for index in range(len(function.params))]
    views = [
        tirx.DeclBuffer(one, data=pointer)
        for one, pointer in zip(function.params, pointers, strict=True)
    ]
    body = tirx.SeqStmt([*views, function.body])
    return tirx.PrimFunc(pointers, body, None, function.attrs)


def _passes(target: Any) -> Any:
    return tvm.ir.transform.Sequential(
        [
            tirx.transform.BindTarget(target),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            tirx.transform.LowerIntrin(),
        ]
    )
