"""Pointwise convolution, and the fully connected layer as its 1x1 case: a matrix product.

Positions x input channels (rows of the input) times input x output channels. A register tile of
`schedule.tile` positions by `schedule.vectors` channel vectors is accumulated over the input
channels; weights are packed group by group so that the inner loop reads them in order.
"""

from typing import Any

import numpy as np

from bignas.compile.kernels.builder import Arguments, Expr, Tile, build_function, loop, read, spread
from bignas.compile.schedule import Schedule, column_groups, vector_chunks
from bignas.device_db.records import Workload

__all__ = ["emit", "pack"]


def pack(workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray) -> np.ndarray:
    """Pack weights [out, in, 1, 1] as [group][in][channel of the group], flat."""
    matrix = weights.reshape(workload.out_channels, workload.in_channels)
    groups = column_groups(workload.out_channels, lanes, schedule.vectors)
    return np.concatenate([matrix[start : start + width].T.ravel() for start, width in groups])


def emit(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of a pointwise convolution."""
    pixels = workload.height * workload.width
    depth = workload.in_channels
    full, rest = divmod(pixels, schedule.tile)

    def body(arguments: Arguments) -> None:
        def tile(first_pixel: Expr, rows: int, first_channel: Expr, width: int) -> None:
            accumulators = Tile(rows, vector_chunks(width, lanes))
            accumulators.start(arguments.bias, first_channel)

            def step(k: Expr) -> None:
                for offset, size in accumulators.chunks:
                    row_of_weights = first_channel * depth + k * width + offset
                    weight = read(arguments.weights, row_of_weights, size)
                    for row in range(rows):
                        value = read(arguments.input, (first_pixel + row) * depth + k, 1)
                        total = accumulators.get(row, offset, size) + spread(value, size) * weight
                        accumulators.set(row, offset, size, total)

            unrolled = schedule.unroll
            if depth >= unrolled:
                with loop(0, depth // unrolled) as block:
                    for inner in range(unrolled):
                        step(block * unrolled + inner)
            for k in range(depth - depth % unrolled, depth):
                step(k)
            accumulators.finish(workload, arguments, lambda row: first_pixel + row, first_channel)

        def columns(first_channel: Expr, width: int) -> None:
            if full:
                with loop(0, full) as index:
                    tile(index * schedule.tile, schedule.tile, first_channel, width)
            if rest:
                tile(full * schedule.tile, rest, first_channel, width)

        over_groups(workload.out_channels, lanes, schedule.vectors, columns)

    return build_function(name, workload, body)


def over_groups(channels: int, lanes: int, vectors: int, emit_group: Any) -> None:
    """Emit a loop over the channel groups of full width, and the narrower last group apart."""
    groups = column_groups(channels, lanes, vectors)
    width = groups[0][1]
    alike = sum(1 for _, size in groups if size == width)
    with loop(0, alike) as index:
        emit_group(index * width, width)
    for start, size in groups[alike:]:
        emit_group(start, size)
