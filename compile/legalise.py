"""One operation -> a fallback kernel: TVM's own loop nest for it, on our layout.

Phases
    1. write      Relax legalises the operator to a loop nest on logical (NCHW) shapes
    2. inline     stages that are a function of single elements, such as padding, into their readers
    3. lay out    spatial operands, intermediates and the output become NHWC in memory
    4. order      channels innermost, where LLVM makes vectors of them
    5. lift       what is left of intermediate buffers becomes scratch that the caller provides

Where the order of loops cannot be changed it stays as TVM wrote it: slow, and right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, s_tir, te, tirx

from bignas.compile.fallback import FallbackKernel
from bignas.compile.kernels.builder import activate
from bignas.device_db.errors import ModelError
from bignas.device_db.workload import Activation, Layout

__all__ = ["Operand", "activation_kernel", "operator_kernel", "padding_kernel", "transpose_kernel"]

FLOAT32 = "float32"
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """What a kernel reads: logical shape, and how values of four dimensions lie in memory."""

    shape: Shape
    layout: Layout = Layout.NHWC


def operator_kernel(
    operator: str, call: Any, module: Any, operands: Sequence[Operand]
) -> tuple[FallbackKernel, tuple[int, ...]]:
    """Return the kernel of a Relax call, and which of the operands it reads, in its order.

    `module` is the one that the call belongs to; the importer writes some operators as calls of
    loop nests in it.

    Raises:
        ModelError: TVM has no single loop nest for the operator, or not on float32; it is named.
    """
    try:
        if call.op.name == "relax.call_tir":
            function, order = module[call.args[0]], tuple(range(len(operands)))
        else:
            function, order = _legalised(operator, call, operands)
        return _kernel(operator, function, [operands[index] for index in order]), order
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(
            f"the model uses an unsupported operator: {operator} ({reason[:120]})"
        ) from error


def activation_kernel(activation: Activation, operand: Operand) -> FallbackKernel:
    """Return the kernel of an activation that stands alone."""

    def function(source: Any) -> Any:
        return te.compute(
            operand.shape, lambda *at: activate(source[at], activation, 1), name=activation.value
        )

    return _computed(activation.value, function, operand)


def padding_kernel(operand: Operand, padding: Sequence[int]) -> FallbackKernel:
    """Return the kernel that adds zeros around an image; `padding`: top, left, bottom, right."""
    top, left, bottom, right = padding
    _, channels, height, width = operand.shape
    shape = (1, channels, height + top + bottom, width + left + right)

    def function(source: Any) -> Any:
        def value(n: Any, c: Any, y: Any, x: Any) -> Any:
            rows = tirx.all(y >= top, y < top + height)
            columns = tirx.all(x >= left, x < left + width)
            inside = source[n, c, y - top, x - left]
            return tirx.if_then_else(tirx.all(rows, columns), inside, tirx.FloatImm(FLOAT32, 0.0))

        return te.compute(shape, value, name="pad")

    return _computed("pad", function, operand)


def transpose_kernel(shape: Shape) -> FallbackKernel:
    """Return the kernel that brings the network's input from NCHW to NHWC."""

    def function(source: Any) -> Any:
        return te.compute(shape, lambda *at: source[at], name="transpose")

    return _computed("transpose", function, Operand(shape, Layout.NCHW))


def _computed(operator: str, function: Callable[[Any], Any], operand: Operand) -> FallbackKernel:
    source = te.placeholder(operand.shape, FLOAT32, name="x0")
    return _kernel(operator, te.create_prim_func([source, function(source)]), [operand])


def _legalised(
    operator: str, call: Any, operands: Sequence[Operand]
) -> tuple[Any, tuple[int, ...]]:
    """Return the loop nest that Relax writes for a call, and which operands its parameters are."""
    variables = [
        relax.Var(f"x{index}", relax.TensorType(operand.shape, FLOAT32))
        for index, operand in enumerate(operands)
    ]
    fresh = iter(variables)

    def replaced(argument: Any) -> Any:
        if isinstance(argument, relax.Tuple):
            return relax.Tuple([replaced(one) for one in argument.fields])
        if isinstance(getattr(argument, "ty", None), relax.TensorType):
            return next(fresh)
        return argument

    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        arguments = [replaced(one) for one in call.args]
        builder.emit_func_output(
            builder.emit(relax.Call(call.op, arguments, call.attrs, call.ty_args))
        )
    module = relax.transform.LegalizeOps()(builder.finalize())
    bindings = [one for block in module["main"].body.blocks for one in block.bindings]
    calls = [one.value for one in bindings if isinstance(one.value, relax.Call)]
    if len(calls) != 1 or getattr(calls[0].op, "name", "") != "relax.call_tir":
        raise ModelError(f"the model uses an unsupported operator: {operator}")
    parameters = list(module["main"].params)
    order = tuple(
        next(index for index, one in enumerate(parameters) if one.same_as(argument))
        for argument in calls[0].args[1].fields
    )
    return module[calls[0].args[0]], order


def _kernel(operator: str, function: Any, operands: Sequence[Operand]) -> FallbackKernel:
    parameters = list(function.params)
    shapes = [tuple(int(size) for size in one.shape) for one in parameters]
    if len(parameters) != len(operands) + 1 or any(one.dtype != FLOAT32 for one in parameters):
        raise ModelError(
            f"the model uses an unsupported operator: {operator} (only float32 to float32)"
        )
    schedule = s_tir.Schedule(function)
    _inline(schedule)
    planes = [*(operand.layout for operand in operands), Layout.NHWC]
    for index, (shape, layout) in enumerate(zip(shapes, planes, strict=True)):
        if len(shape) == 4 and layout is Layout.NHWC:
            _lay_out(schedule, index)
    blocks = _blocks(schedule)
    for block in blocks[:-1]:
        if _rank(schedule, block) == 4:
            _transform(schedule, block, "write", 0)
    for block in blocks:
        if _rank(schedule, block) == 4:
            _order(schedule, block)
    lifted, scratch = _lift(schedule.mod["main"])
    code = tvm.IRModule({"main": lifted}).script()
    return FallbackKernel(operator, len(operands), shapes[-1], scratch, code)


def _blocks(schedule: Any) -> list[Any]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _inline(schedule: Any) -> None:
    for block in _blocks(schedule)[:-1]:
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue  # a reduction; it keeps a buffer of its own


def _lay_out(schedule: Any, index: int) -> None:
    """Change a parameter of four dimensions to NHWC; one that nobody reads stays as it is."""
    parameter = schedule.mod["main"].params[index]
    for block in _blocks(schedule):
        node = schedule.get(block)
        for kind, regions in (("read", node.reads), ("write", node.writes)):
            for position, region in enumerate(regions):
                if region.source.same_as(parameter):
                    _transform(schedule, block, kind, position)
                    return


def _transform(schedule: Any, block: Any, kind: str, position: int) -> None:
    schedule.transform_layout(
        block, (kind, position), lambda n, c, h, w: (n, h, w, c), assume_injective_transform=True
    )


def _rank(schedule: Any, block: Any) -> int:
    """Return the number of dimensions of what a stage writes."""
    return len(schedule.get(block).writes[0].source.shape)


def _order(schedule: Any, block: Any) -> None:
    """Move the channels of a stage inside, past its reduction."""
    loops = schedule.get_loops(block)
    node = schedule.get(block)
    if len(loops) < 4 or len(node.iter_vars) != len(loops):
        return
    try:
        schedule.reorder(loops[2], loops[3], *loops[4:], loops[1])
        if len(loops) > 4:
            schedule.decompose_reduction(block, loops[4])
    except s_tir.ScheduleError:
        return


def _lift(function: Any) -> tuple[Any, tuple[int, ...]]:
    """Make parameters of the buffers that a loop nest allocates; return their sizes too."""
    realize = function.body
    root = realize.block
    buffers = list(root.alloc_buffers)
    bare = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init,
        [], root.match_buffers, root.annotations,
    )  # fmt: skip
    body = s_tir.SBlockRealize(realize.iter_values, realize.predicate, bare)
    lifted = tirx.PrimFunc([*function.params, *buffers], body, function.ret_type, function.attrs)
    return lifted, tuple(math.prod(int(size) for size in one.shape) for one in buffers)
