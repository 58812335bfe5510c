"""What all kernels share: the signature, vector loads and stores, accumulators and epilogues.

Every kernel is a plain C function of five pointers to float32 and a range of tasks,

    void kernel(const float *input, const float *weights, const float *bias,
                float *other, float *output, int first, int last);

where `other` is the residual, the gate of a squeeze-excite block, or the scratch memory of a fused
block; pointers that a kernel has no use for are null. The tasks are slices of the output along the
axis that the schedule splits: threads compute ranges of them that do not overlap. A kernel without
a split computes everything whatever the range. Activations are NHWC (the first kernel may read
NCHW). Shapes are compiled in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T  # noqa: N812  its name in all of TVM

from bignas.device_db.workload import Activation, Workload

__all__ = [
    "Arguments",
    "Tile",
    "activate",
    "build_function",
    "constant",
    "loop",
    "output_store",
    "prefetch",
    "read",
    "write",
]

Expr = Any  # TIR expressions carry no types that mypy could check
Buffer = Any

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
# minimax polynomial of exp on [-ln2/2, ln2/2]: Cephes `expf` (S. Moshier, netlib.org/cephes)
EXP_COEFFICIENTS = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip
EXP_RANGE = 87.0


@dataclass(frozen=True, slots=True)
class Arguments:
    """The flat buffers of a kernel's five pointers, and its range of tasks."""

    input: Buffer
    weights: Buffer
    bias: Buffer
    other: Buffer
    output: Buffer
    first: Expr
    last: Expr

    def tasks(self, start: int, stop: int, *, split: bool) -> Any:
        """Return a loop over the tasks from `start` to `stop`: those in range if they are split."""
        if not split:
            return loop(start, stop)
        return loop(tirx.max(self.first, start), tirx.min(self.last, stop))


def build_function(
    name: str,
    workload: Workload,
    body: Callable[[Arguments], None],
    weight_count: int | None = None,
) -> Any:
    """Return the TIR function `name` whose statements `body` emits.

    `weight_count` is that of the packed weights, where it is not the workload's.
    """
    pixels_out = workload.out_height * workload.out_width
    sizes = {
        "input": workload.height * workload.width * workload.in_channels,
        "weights": max(1, weight_count or workload.weight_count),
        "bias": workload.bias_count,
        "other": max(workload.scratch_count, pixels_out * workload.out_channels),
        "output": pixels_out * workload.out_channels,
    }
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        pointers = {key: T.arg(key, T.handle("float32")) for key in sizes}
        first, last = (T.arg(key, T.int32()) for key in ("first", "last"))
        buffers = {
            key: T.decl_buffer((size,), "float32", data=pointers[key], layout=None)
            for key, size in sizes.items()
        }
        body(Arguments(**buffers, first=first, last=last))
    return builder.get()


def loop(start: Expr, stop: Expr) -> Any:
    """Return a serial loop as a context manager that yields its index."""
    return T.serial(start, stop)


def _index(offset: Expr, lanes: int) -> Expr:
    return offset if lanes == 1 else tirx.Ramp(offset, 1, lanes)


def constant(value: float, lanes: int) -> Expr:
    """Return a float32 constant in every lane."""
    return spread(tirx.FloatImm("float32", value), lanes)


def spread(value: Expr, lanes: int) -> Expr:
    """Return a scalar in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def read(buffer: Buffer, offset: Expr, lanes: int) -> Expr:
    """Return `lanes` consecutive values."""
    return buffer[_index(offset, lanes)]


def write(buffer: Buffer, offset: Expr, lanes: int, value: Expr) -> None:
    """Store `lanes` consecutive values."""
    T.buffer_store(buffer, value, [_index(offset, lanes)])


def prefetch(buffer: Buffer, offset: Expr) -> None:
    """Ask for the cache line of a value ahead of its use; addresses out of range are harmless."""
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", T.address_of(buffer[offset]), 0, 3, 1))


class Tile:
    """Accumulators of `rows` positions by a group of channel vectors, kept in registers by LLVM."""

    def __init__(self, rows: int, chunks: Sequence[tuple[int, int]]) -> None:
        self.rows = rows
        self.chunks = tuple(chunks)
        self.width = sum(lanes for _, lanes in self.chunks)
        self._values = T.alloc_buffer((rows * self.width,), "float32", scope="local", layout=None)

    def get(self, row: int, offset: int, lanes: int) -> Expr:
        """Return the accumulator vector of one position."""
        return read(self._values, row * self.width + offset, lanes)

    def set(self, row: int, offset: int, lanes: int, value: Expr) -> None:
        """Replace the accumulator vector of one position."""
        write(self._values, row * self.width + offset, lanes, value)

    def start(self, bias: Buffer | None, first_channel: Expr) -> None:
        """Start every accumulator at the bias of its channel, or at zero."""
        for offset, lanes in self.chunks:
            for row in range(self.rows):
                value = (
                    constant(0.0, lanes)
                    if bias is None
                    else read(bias, first_channel + offset, lanes)
                )
                self.set(row, offset, lanes, value)

    def finish(self, store: Callable[[int, int, int, Expr], None]) -> None:
        """Hand every accumulator to `store(row, offset, lanes, value)`."""
        for row in range(self.rows):
            for offset, lanes in self.chunks:
                store(row, offset, lanes, self.get(row, offset, lanes))


def output_store(
    workload: Workload,
    arguments: Arguments,
    position: Callable[[int], Expr],
    first_channel: Expr,
) -> Callable[[int, int, int, Expr], None]:
    """Return what ends most kernels: add the residual, apply the activation, store.

    `position(row)` is the output pixel of a row of the tile.
    """

    def store(row: int, offset: int, lanes: int, value: Expr) -> None:
        target = position(row) * workload.out_channels + first_channel + offset
        if workload.residual:
            value = value + read(arguments.other, target, lanes)
        write(arguments.output, target, lanes, activate(value, workload.activation, lanes))

    return store


def activate(value: Expr, activation: Activation, lanes: int) -> Expr:
    """Return the activation of a vector."""
    zero, one = constant(0.0, lanes), constant(1.0, lanes)
    match activation:
        case Activation.NONE:
            return value
        case Activation.RELU:
            return tirx.max(value, zero)
        case Activation.RELU6:
            return tirx.min(tirx.max(value, zero), constant(6.0, lanes))
        case Activation.HARD_SIGMOID:
            return _hard_sigmoid(value, lanes)
        case Activation.HARD_SWISH:
            return value * _hard_sigmoid(value, lanes)
        case Activation.SIGMOID:
            return one / (one + _exp(-value, lanes))
        case Activation.SWISH:
            return value / (one + _exp(-value, lanes))


def _hard_sigmoid(value: Expr, lanes: int) -> Expr:
    shifted = value * constant(1.0 / 6.0, lanes) + constant(0.5, lanes)
    return tirx.min(tirx.max(shifted, constant(0.0, lanes)), constant(1.0, lanes))


def _exp(value: Expr, lanes: int) -> Expr:
    """Return exp to about 1e-7 relative error, in vector registers, without a call into libm."""
    clipped = tirx.min(tirx.max(value, constant(-EXP_RANGE, lanes)), constant(EXP_RANGE, lanes))
    power = tirx.floor(clipped * constant(LOG2_E, lanes) + constant(0.5, lanes))
    rest = clipped - power * constant(LN2_HIGH, lanes) - power * constant(LN2_LOW, lanes)
    polynomial = constant(EXP_COEFFICIENTS[0], lanes)
    for coefficient in EXP_COEFFICIENTS[1:]:
        polynomial = polynomial * rest + constant(coefficient, lanes)
    result = polynomial * rest * rest + rest + constant(1.0, lanes)
    kind = "int32" if lanes == 1 else f"int32x{lanes}"
    exponent = tirx.Cast(kind, power) + spread(tirx.IntImm("int32", 127), lanes)
    scale = tirx.reinterpret(
        "float32" if lanes == 1 else f"float32x{lanes}",
        exponent << spread(tirx.IntImm("int32", 23), lanes),
    )
    return result * scale
