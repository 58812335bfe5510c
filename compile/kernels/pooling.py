"""Pooling over a window: the greatest value or the mean, channel by channel.

One output pixel by `schedule.vectors` channel vectors at a time. Nothing is padded in memory:
window rows outside the image are left out of the loop by its bounds, and columns outside it are
left out of the code of the pixels at both ends of a row, whose positions are known when the code is
written. Padded zeros count in the mean; of the greatest value they are no part.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx

from bignas.compile.kernels.builder import (
    Arguments,
    Expr,
    Tile,
    activate,
    build_function,
    constant,
    loop,
    read,
    write,
)
from bignas.compile.kernels.pointwise import over_groups
from bignas.compile.schedule import Schedule, Split, vector_chunks
from bignas.device_db.workload import Workload

__all__ = ["emit_average_pool", "emit_max_pool"]

LOWEST = -3.4028234663852886e38  # of float32


def emit_max_pool(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of max pooling."""
    return _emit(name, workload, schedule, lanes, LOWEST, tirx.max)


def emit_average_pool(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of average pooling; padded zeros count."""
    share = 1.0 / workload.kernel**2
    return _emit(name, workload, schedule, lanes, 0.0, lambda total, one: total + one, share)


def _emit(
    name: str,
    workload: Workload,
    schedule: Schedule,
    lanes: int,
    start: float,
    combine: Callable[[Expr, Expr], Expr],
    factor: float | None = None,
) -> Any:
    """Emit the loops over channel groups, rows and pixels around the values of one window."""
    channels, stride, padding = workload.in_channels, workload.stride, workload.padding
    first_inner, last_inner = _inner_columns(workload)

    def body(arguments: Arguments) -> None:
        def pixel(y: Expr, x: Expr, first: Expr, width: int) -> None:
            values = Tile(1, vector_chunks(width, lanes))
            for offset, size in values.chunks:
                values.set(0, offset, size, constant(start, size))
            top, left = y * stride - padding, x * stride - padding
            stop = tirx.min(workload.kernel, workload.height - top)
            with loop(tirx.max(0, -top), stop) as row:
                for column in range(workload.kernel):
                    at = left + column
                    if isinstance(at, int) and not 0 <= at < workload.width:
                        continue
                    source = ((top + row) * workload.width + at) * channels + first
                    for offset, size in values.chunks:
                        one = read(arguments.input, source + offset, size)
                        values.set(0, offset, size, combine(values.get(0, offset, size), one))
            target = (y * workload.out_width + x) * channels + first
            for offset, size in values.chunks:
                result = values.get(0, offset, size)
                if factor is not None:
                    result = result * constant(factor, size)
                result = activate(result, workload.activation, size)
                write(arguments.output, target + offset, size, result)

        def group(first: Expr, width: int) -> None:
            split = schedule.split is Split.PIXELS
            with arguments.tasks(0, workload.out_height, split=split) as y:
                for x in range(first_inner):
                    pixel(y, x, first, width)
                if first_inner < last_inner:
                    with loop(first_inner, last_inner) as x:
                        pixel(y, x, first, width)
                for x in range(last_inner, workload.out_width):
                    pixel(y, x, first, width)

        over_groups(channels, lanes, schedule, arguments, group)

    return build_function(name, workload, body)


def _inner_columns(workload: Workload) -> tuple[int, int]:
    """Return the range of output columns whose window lies in the image from left to right."""
    one = workload
    first = min(-(-one.padding // one.stride), one.out_width)
    last = (one.width + one.padding - one.kernel) // one.stride + 1
    return first, max(first, min(last, one.out_width))
