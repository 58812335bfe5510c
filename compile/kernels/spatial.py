"""Convolutions with a window: dense (the stem, residual networks) and depthwise.

One output row at a time, `schedule.tile` pixels of it by `schedule.vectors` channel vectors are
accumulated over the window. Nothing is padded in memory: window rows outside the image are left out
of the loop by its bounds, and columns outside it are left out of the code of the tiles at both ends
of a row, whose positions are known when the code is written.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from bignas.compile.kernels.builder import Arguments, Expr, Tile, build_function, loop, read, spread
from bignas.compile.kernels.pointwise import over_groups
from bignas.compile.schedule import Schedule, column_groups, vector_chunks
from bignas.device_db.records import Layout, Workload

__all__ = ["emit_conv", "emit_depthwise", "pack_conv", "pack_depthwise"]

UNROLLED_CHANNELS = 4  # up to so many input channels (RGB) the reduction is written out


def pack_conv(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Pack weights [out, in, k, k] as [group][window row][in][window column][channel], flat."""
    groups = column_groups(workload.out_channels, lanes, schedule.vectors)
    return np.concatenate(
        [weights[start : start + width].transpose(2, 1, 3, 0).ravel() for start, width in groups]
    )


def pack_depthwise(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Pack weights [channels, 1, k, k] as [group][window row][window column][channel], flat."""
    groups = column_groups(workload.out_channels, lanes, schedule.vectors)
    return np.concatenate(
        [weights[start : start + width, 0].transpose(1, 2, 0).ravel() for start, width in groups]
    )


def emit_depthwise(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of a depthwise convolution."""
    channels, kernel = workload.in_channels, workload.kernel

    def row(arguments: Arguments, state: "_Window") -> None:
        for column in range(kernel):
            for offset, size in state.tile.chunks:
                place = (state.window_row * kernel + column) * state.width + offset
                weight = read(
                    arguments.weights, state.first_channel * kernel * kernel + place, size
                )
                for pixel in range(state.tile.rows):
                    if not state.inside(pixel, column):
                        continue
                    source = state.source(pixel, column) * channels + state.first_channel + offset
                    product = read(arguments.input, source, size) * weight
                    total = state.tile.get(pixel, offset, size) + product
                    state.tile.set(pixel, offset, size, total)

    return _emit(name, workload, schedule, lanes, row)


def emit_conv(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of a dense convolution; the input may be NCHW."""
    depth, kernel = workload.in_channels, workload.kernel
    area = workload.height * workload.width
    planar = workload.input_layout is Layout.NCHW

    def row(arguments: Arguments, state: "_Window") -> None:
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


class _Window:
    """Where a tile of output pixels stands, and which inputs one window row of it reads."""

    def __init__(
        self, workload: Workload, tile: Tile, y: Expr, x: Expr, first_channel: Expr, width: int
    ) -> None:
        self.workload = workload
        self.tile = tile
        self.y = y
        self.x = x
        self.first_channel = first_channel
        self.width = width
        self.window_row: Expr = 0

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
        return y * one.width + x


def _emit(
    name: str,
    workload: Workload,
    schedule: Schedule,
    lanes: int,
    window_row: Callable[[Arguments, _Window], None],
) -> Any:
    """Emit the loops over channel groups, rows and tiles around the sum over one window row."""
    first_inner, last_inner = _inner_rows(workload)

    def body(arguments: Arguments) -> None:
        def tile(y: Expr, x: Expr, pixels: int, first: Expr, width: int, whole: bool) -> None:
            accumulators = Tile(pixels, vector_chunks(width, lanes))
            state = _Window(workload, accumulators, y, x, first, width)
            accumulators.start(arguments.bias, first)
            if whole:
                for row in range(workload.kernel):
                    state.window_row = row
                    window_row(arguments, state)
            else:
                top = y * workload.stride - workload.padding
                start = tirx.max(0, -top) if not isinstance(y, int) else max(0, -top)
                stop = (
                    tirx.min(workload.kernel, workload.height - top)
                    if not isinstance(y, int)
                    else min(workload.kernel, workload.height - top)
                )
                with loop(start, stop) as index:
                    state.window_row = index
                    window_row(arguments, state)
            accumulators.finish(
                workload, arguments, lambda pixel: y * workload.out_width + x + pixel, first
            )

        def row(y: Expr, first: Expr, width: int, whole: bool) -> None:
            for start, pixels, repeats in _row_tiles(workload, schedule.tile):
                if repeats == 1:
                    tile(y, start, pixels, first, width, whole)
                else:
                    with loop(0, repeats) as index:
                        tile(y, start + index * pixels, pixels, first, width, whole)

        def group(first: Expr, width: int) -> None:
            if schedule.unroll == 1 or last_inner <= first_inner:
                with loop(0, workload.out_height) as y:
                    row(y, first, width, whole=False)
                return
            if first_inner:
                with loop(0, first_inner) as y:
                    row(y, first, width, whole=False)
            with loop(first_inner, last_inner) as y:
                row(y, first, width, whole=True)
            if last_inner < workload.out_height:
                with loop(last_inner, workload.out_height) as y:
                    row(y, first, width, whole=False)

        over_groups(workload.out_channels, lanes, schedule.vectors, group)

    return build_function(name, workload, body)


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
