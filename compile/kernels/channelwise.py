"""Kernels that work channel by channel: global average pooling and the squeeze-excite multiply."""

from typing import Any

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

__all__ = ["emit_global_pool", "emit_scale"]


def emit_global_pool(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of global average pooling: [pixels, channels] to [channels]."""
    pixels, channels = workload.height * workload.width, workload.in_channels

    def body(arguments: Arguments) -> None:
        def group(first: Expr, width: int) -> None:
            sums = Tile(1, vector_chunks(width, lanes))
            for offset, size in sums.chunks:
                sums.set(0, offset, size, constant(0.0, size))
            with loop(0, pixels) as pixel:
                for offset, size in sums.chunks:
                    value = read(arguments.input, pixel * channels + first + offset, size)
                    sums.set(0, offset, size, sums.get(0, offset, size) + value)
            for offset, size in sums.chunks:
                mean = sums.get(0, offset, size) * constant(1.0 / pixels, size)
                result = activate(mean, workload.activation, size)
                write(arguments.output, first + offset, size, result)

        over_groups(channels, lanes, schedule, arguments, group)

    return build_function(name, workload, body)


def emit_scale(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function that multiplies each channel by its gate (`other`, [channels])."""
    pixels, channels = workload.height * workload.width, workload.in_channels

    def body(arguments: Arguments) -> None:
        def group(first: Expr, width: int) -> None:
            gates = Tile(1, vector_chunks(width, lanes))
            for offset, size in gates.chunks:
                gates.set(0, offset, size, read(arguments.other, first + offset, size))
            with arguments.tasks(0, pixels, split=schedule.split is Split.PIXELS) as pixel:
                for offset, size in gates.chunks:
                    place = pixel * channels + first + offset
                    value = read(arguments.input, place, size) * gates.get(0, offset, size)
                    result = activate(value, workload.activation, size)
                    write(arguments.output, place, size, result)

        over_groups(channels, lanes, schedule, arguments, group)

    return build_function(name, workload, body)
