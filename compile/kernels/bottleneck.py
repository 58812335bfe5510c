"""The fused inverted bottleneck: expand, depthwise and project as one loop nest.

Output rows are computed one after the other. The rows of the expanded activation that a window
covers are kept in a ring of `kernel` rows, so each is computed once, and what the depthwise
convolution yields is one row, projected at once: the wide activations stay in the nearest caches
whatever the size of the image. Memory for both is the scratch area of the calling thread, its
layout [ring of kernel rows][one output row], channels last. A thread that starts in the middle of
the image computes the first rows of its ring anew.
"""

from dataclasses import replace
from typing import Any

from tvm import tirx

from bignas.compile.inverted_bottleneck import parts_of, schedules_of_parts
from bignas.compile.kernels.builder import (
    Arguments,
    Expr,
    Tile,
    activate,
    build_function,
    loop,
    output_store,
    write,
)
from bignas.compile.kernels.pointwise import Product, over_groups
from bignas.compile.kernels.spatial import Window, depthwise_window_row, over_tiles, row_segments
from bignas.compile.schedule import Schedule, Split, vector_chunks
from bignas.device_db.workload import Workload

__all__ = ["emit"]


def emit(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of an inverted bottleneck."""
    hidden, kernel, width = workload.hidden_channels, workload.kernel, workload.width
    *_, depthwise, project = parts_of(workload)
    *expansion, window_schedule, project_schedule = schedules_of_parts(workload, schedule)
    window_bias = hidden if workload.expands else 0
    window_weights = workload.in_channels * hidden if workload.expands else 0
    project_weights = window_weights + hidden * kernel * kernel
    row_place = kernel * width * hidden if workload.expands else 0

    def body(arguments: Arguments) -> None:
        scratch = arguments.other

        def expand_row(row: Expr) -> None:
            product = Product(
                arguments.input, arguments.weights, arguments.bias, workload.in_channels
            )
            slot = tirx.truncmod(row, kernel) * width

            def group(first: Expr, size: int) -> None:
                def tile(x: Expr, pixels: int) -> None:
                    def store(pixel: int, offset: int, lanes: int, value: Expr) -> None:
                        place = (slot + x + pixel) * hidden + first + offset
                        write(scratch, place, lanes, activate(value, workload.activation, lanes))

                    accumulators = Tile(pixels, vector_chunks(size, lanes))
                    product.at(first, size).accumulate(
                        accumulators,
                        lambda pixel: (row * width + x + pixel) * workload.in_channels,
                        schedule.unroll,
                    )
                    accumulators.finish(store)

                _over_row(width, schedule.tile, tile)

            over_groups(hidden, lanes, expansion[0], arguments, group)

        def window_row(y: Expr, *, whole: bool) -> None:
            def group(first: Expr, size: int) -> None:
                def tile(x: Expr, pixels: int) -> None:
                    def add_row(state: Window) -> None:
                        source = scratch if workload.expands else arguments.input
                        depthwise_window_row(state, source, arguments.weights, window_weights)

                    def store(pixel: int, offset: int, lanes: int, value: Expr) -> None:
                        place = row_place + (x + pixel) * hidden + first + offset
                        write(scratch, place, lanes, activate(value, workload.activation, lanes))

                    accumulators = Tile(pixels, vector_chunks(size, lanes))
                    accumulators.start(arguments.bias, window_bias + first)
                    window = Window(depthwise, accumulators, y, x, first, size)
                    if workload.expands:
                        window.slot = lambda row: tirx.truncmod(row, kernel)
                    window.accumulate(add_row, whole=whole)
                    accumulators.finish(store)

                over_tiles(depthwise, window_schedule.tile, tile)

            over_groups(hidden, lanes, window_schedule, arguments, group)

        def project_row(y: Expr) -> None:
            product = Product(
                scratch,
                arguments.weights,
                arguments.bias,
                hidden,
                project_weights,
                window_bias + hidden,
            )

            def group(first: Expr, size: int) -> None:
                def tile(x: Expr, pixels: int) -> None:
                    accumulators = Tile(pixels, vector_chunks(size, lanes))
                    product.at(first, size).accumulate(
                        accumulators,
                        lambda pixel: row_place + (x + pixel) * hidden,
                        schedule.unroll,
                    )
                    start = y * workload.out_width + x
                    target = replace(arguments, other=arguments.input)
                    accumulators.finish(
                        output_store(project, target, lambda pixel: start + pixel, first)
                    )

                _over_row(workload.out_width, project_schedule.tile, tile)

            over_groups(workload.out_channels, lanes, project_schedule, arguments, group)

        first_row = arguments.first if schedule.split is Split.PIXELS else 0
        with arguments.tasks(0, workload.out_height, split=schedule.split is Split.PIXELS) as y:
            if workload.expands:
                top = y * workload.stride - workload.padding
                before = top - workload.stride + kernel
                begin = tirx.Select(y == first_row, tirx.max(0, top), before)
                end = tirx.min(top + kernel, workload.height)
                with loop(tirx.min(begin, end), end) as row:
                    expand_row(row)
            for start, stop, whole in row_segments(depthwise, whole=True):
                with loop(tirx.max(start, y), tirx.min(stop, y + 1)) as same:
                    window_row(same, whole=whole)
            project_row(y)

    return build_function(name, workload, body)


def _over_row(width: int, tile: int, emit_tile: Any) -> None:
    """Emit the tiles of a row of `width` pixels, the last one narrower where it has to be."""
    full, rest = divmod(width, tile)
    if full:
        with loop(0, full) as index:
            emit_tile(index * tile, tile)
    if rest:
        emit_tile(full * tile, rest)
