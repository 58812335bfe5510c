"""Convolutions with a window: dense (the stem, residual networks) and depthwise.

One output row at a time, `schedule.tile` pixels of it by `schedule.vectors` channel vectors are
accumulated over the window. Nothing is padded in memory: window rows outside the image are left out
of the loop by its bounds, and columns outside it are left out of the code of the tiles at both ends
of a row, whose positions are known when the code is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from bignas.compile.kernels.builder import (
    Arguments,
    Buffer,
    Expr,
    Tile,
    build_function,
    loop,
    output_store,
    read,
    spread,
)
from bignas.compile.kernels.pointwise import over_groups
from bignas.compile.schedule import Schedule, Split, vector_chunks
from bignas.device_db.workload import Layout, Workload

__all__ = [
    "Window",
    "depthwise_window_row",
    "emit_conv",
    "emit_depthwise",
    "over_tiles",
    "row_segments",
]

UNROLLED_CHANNELS = 4  # up to so many input channels (RGB) the reduction is written out


def emit_depthwise(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of a depthwise convolution."""

    def row(arguments: Arguments, state: Window) -> None:
        depthwise_window_row(state, arguments.input, arguments.weights)

    return _emit(name, workload, schedule, lanes, row)


def depthwise_window_row(state: "Window", source: Buffer, weights: Buffer, start: int = 0) -> None:
    """Add one window row of a depthwise convolution to a tile; its weights begin at `start`."""
    kernel, channels = state.workload.kernel, state.workload.in_channels
    first_weight = start + state.first_channel * kernel * kernel
    for column in range(kernel):
        for offset, size in state.tile.chunks:
            place = (state.window_row * kernel + column) * state.width + offset
            weight = read(weights, first_weight + place, size)
            for pixel in range(state.tile.rows):
                if not state.inside(pixel, column):
                    continue
                place = state.source(pixel, column) * channels + state.first_channel + offset
                total = state.tile.get(pixel, offset, size) + read(source, place, size) * weight
                state.tile.set(pixel, offset, size, total)


def emit_conv(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of a dense convolution, window by window; the input may be NCHW."""
    depth, kernel = workload.in_channels, workload.kernel
    area = workload.height * workload.width
    planar = workload.input_layout is Layout.NCHW

    def row(arguments: Arguments, state: Window) -> None:
        def step(k: Expr) -> None:
            base = state.first_channel * depth * kernel * kernel
            for column in range(kernel):
                for offset, size in state.tile.chunks:
                    place = (
                        (state.window_row * depth + k) * kernel + column
                    ) * state.width + offset
                    weight = read(arguments.weights, base + place, size)
                    for pixel in range(state.tile.rows):
                        if not state.inside(pixel, column):
                            continue
                        source = state.source(pixel, column)
                        index = k * area + source if planar else source * depth + k
                        value = spread(read(arguments.input, index, 1), size)
                        total = state.tile.get(pixel, offset, size) + value * weight
                        state.tile.set(pixel, offset, size, total)

        if depth <= UNROLLED_CHANNELS:
            for k in range(depth):
                step(k)
        else:
            with loop(0, depth) as k:
                step(k)

    return _emit(name, workload, schedule, lanes, row)


@dataclass
class Window:
    """Where a tile of output pixels stands, and which inputs one window row of it reads.

    `slot(row)` is the place of an input row in the buffer that holds the input.
    """

    workload: Workload
    tile: Tile
    y: Expr
    x: Expr
    first_channel: Expr
    width: int
    slot: Callable[[Expr], Expr] = lambda row: row
    window_row: Expr = 0

    def inside(self, pixel: int, column: int) -> bool:
        """Return whether a tap lies in the image; tiles at a moving position never leave it."""
        if not isinstance(self.x, int):
            return True
        at = (self.x + pixel) * self.workload.stride - self.workload.padding + column
        return 0 <= at < self.workload.width

    def source(self, pixel: int, column: int) -> Expr:
        """Return the input pixel (row * width + column) of a tap."""
        one = self.workload
        y = self.y * one.stride - one.padding + self.window_row
        x = (self.x + pixel) * one.stride - one.padding + column
        return self.slot(y) * one.width + x

    def accumulate(self, add_row: Callable[["Window"], None], *, whole: bool) -> None:
        """Add the window rows that lie in the image; of `whole` windows, all do."""
        one = self.workload
        if whole:
            for row in range(one.kernel):
                self.window_row = row
                add_row(self)
            return
        top = self.y * one.stride - one.padding
        with loop(tirx.max(0, -top), tirx.min(one.kernel, one.height - top)) as row:
            self.window_row = row
            add_row(self)


def _emit(
    name: str,
    workload: Workload,
    schedule: Schedule,
    lanes: int,
    window_row: Callable[[Arguments, Window], None],
) -> Any:
    """Emit the loops over channel groups, rows and tiles around the sum over one window row."""
    by_rows = schedule.split is Split.PIXELS

    def body(arguments: Arguments) -> None:
        def tile(y: Expr, x: Expr, pixels: int, first: Expr, width: int, whole: bool) -> None:
            accumulators = Tile(pixels, vector_chunks(width, lanes))
            accumulators.start(arguments.bias, first)
            window = Window(workload, accumulators, y, x, first, width)
            window.accumulate(lambda state: window_row(arguments, state), whole=whole)
            accumulators.finish(
                output_store(
                    workload, arguments, lambda pixel: y * workload.out_width + x + pixel, first
                )
            )

        def group(first: Expr, width: int) -> None:
            for start, stop, whole in row_segments(workload, whole=schedule.unroll > 1):
                with arguments.tasks(start, stop, split=by_rows) as y:

                    def at(x: Expr, pixels: int, y: Expr = y, whole: bool = whole) -> None:
                        tile(y, x, pixels, first, width, whole)

                    over_tiles(workload, schedule.tile, at)

        over_groups(workload.out_channels, lanes, schedule, arguments, group)

    return build_function(name, workload, body)


def row_segments(workload: Workload, *, whole: bool) -> list[tuple[int, int, bool]]:
    """Split the output rows (start, stop, whole) by whether their windows lie in the image.

    Without `whole`, all rows are one segment of windows that may leave the image.
    """
    first, last = _inner_rows(workload)
    if not whole or last <= first:
        return [(0, workload.out_height, False)]
    segments = [(0, first, False), (first, last, True), (last, workload.out_height, False)]
    return [segment for segment in segments if segment[0] < segment[1]]


def over_tiles(workload: Workload, tile: int, emit_tile: Callable[[Expr, int], None]) -> None:
    """Emit the tiles of an output row, `emit_tile(x, pixels)`: a loop over those in the image."""
    for start, pixels, repeats in _row_tiles(workload, tile):
        if repeats == 1:
            emit_tile(start, pixels)
        else:
            with loop(0, repeats) as index:
                emit_tile(start + index * pixels, pixels)


def _inner_rows(workload: Workload) -> tuple[int, int]:
    """Return the range of output rows whose window lies in the image from top to bottom."""
    inner = [
        y
        for y in range(workload.out_height)
        if y * workload.stride >= workload.padding
        and y * workload.stride - workload.padding + workload.kernel <= workload.height
    ]
    return (inner[0], inner[-1] + 1) if inner else (0, 0)


def _row_tiles(workload: Workload, tile: int) -> list[tuple[int, int, int]]:
    """Return (start, pixels, repeats): the tiles of a row, those inside the image as one loop."""
    result: list[tuple[int, int, int]] = []
    inner_before = False
    for start in range(0, workload.out_width, tile):
        pixels = min(tile, workload.out_width - start)
        left = start * workload.stride - workload.padding
        right = left + (pixels - 1) * workload.stride + workload.kernel
        inner = left >= 0 and right <= workload.width and pixels == tile
        if inner and inner_before:
            first, _, repeats = result[-1]
            result[-1] = (first, tile, repeats + 1)
        else:
            result.append((start, pixels, 1))
        inner_before = inner
    return result
