"""Dense 3x3 convolutions of stride 1 by Winograd's minimal filtering, F(2x2, 3x3) or F(4x4, 3x3).

A tile of outputs depends on a patch of inputs. Both are transformed, and between the transforms
each position of the patch is a matrix product of its own: 16 multiplications for 2x2 outputs and a
pair of channels instead of 36, 36 for 4x4 instead of 144. The program transforms the weights before
its first run (runner/winograd.c).

A chunk of tiles is computed at once: its inputs are copied with a border of zeros, transformed, and
multiplied by the weights, group by group of output channels; the transform back ends a group. The
copy, the transformed inputs and the products of a group lie on the stack of the calling thread.
Each weight is used once for all tiles of a chunk, so those of the next position are prefetched.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T  # noqa: N812  its name in all of TVM

from bignas.compile.kernels.builder import (
    Arguments,
    Buffer,
    Expr,
    Tile,
    build_function,
    constant,
    loop,
    output_store,
    read,
    write,
)
from bignas.compile.kernels.pointwise import Product, over_groups
from bignas.compile.schedule import Schedule, Split, vector_chunks
from bignas.compile.winograd import Chunks, chunks_of, positions_of, transformed_count
from bignas.device_db.workload import Workload

__all__ = ["emit"]


def emit(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of a convolution."""
    chunks = chunks_of(workload, schedule.winograd_side, schedule.tile)
    by_rows = schedule.split is Split.PIXELS

    def body(arguments: Arguments) -> None:
        for column, columns in chunks.pieces:
            place = _Place(workload, schedule, lanes, arguments, chunks, column, columns)
            if chunks.full:
                with arguments.tasks(0, chunks.full, split=by_rows) as index:
                    place.compute(index * chunks.rows, chunks.rows, is_last=False)
            if chunks.rest:
                with arguments.tasks(chunks.full, chunks.full + 1, split=by_rows) as index:
                    place.compute(index * chunks.rows, chunks.rest, is_last=True)

    return build_function(name, workload, body, transformed_count(workload, schedule.winograd_side))


@dataclass(frozen=True, slots=True)
class _Place:
    """Some columns of tiles, `columns` from `column` on, of which chunks are computed."""

    workload: Workload
    schedule: Schedule
    lanes: int
    arguments: Arguments
    chunks: Chunks
    column: int
    columns: int

    @property
    def side(self) -> int:
        """Side of a tile."""
        return self.schedule.winograd_side

    @property
    def patch(self) -> int:
        """Side of the patch that a tile depends on."""
        return self.side + 2

    @property
    def positions(self) -> int:
        """Values of a patch."""
        return positions_of(self.side)

    def compute(self, row: Expr, rows: int, *, is_last: bool) -> None:
        """Emit one chunk: `rows` rows of tiles from `row` on, perhaps the last of the image."""
        depth, tiles = self.workload.in_channels, rows * self.columns
        bordered = _stack((rows * self.side + 2) * (self.columns * self.side + 2) * depth)
        transformed = _stack(self.positions * tiles * depth)
        self._copy(bordered, row, rows)
        self._transform(bordered, transformed, rows)

        def group(first: Expr, width: int) -> None:
            products = _stack(self.positions * tiles * width)
            chunks = vector_chunks(width, self.lanes)
            with loop(0, self.positions) as position:
                start = (first * self.positions + position * width) * depth
                product = Product(
                    transformed, self.arguments.weights, None, depth, start, width=width
                )
                sums = Tile(tiles, chunks)
                product.accumulate(
                    sums,
                    lambda tile: (position * tiles + tile) * depth,
                    self.schedule.unroll,
                    range(product.lines),
                )

                def store(tile: int, offset: int, size: int, value: Expr) -> None:
                    place = (position * tiles + tile) * width + offset
                    write(products, place, size, value)

                sums.finish(store)
            self._transform_back(products, row, rows, first, width, is_last=is_last)

        over_groups(self.workload.out_channels, self.lanes, self.schedule, self.arguments, group)

    def _copy(self, target: Buffer, row: Expr, rows: int) -> None:
        """Copy the inputs of a chunk, zeros where they lie outside the image."""
        one = self.workload
        height, width = rows * self.side + 2, self.columns * self.side + 2
        top, left = row * self.side - one.padding, self.column * self.side - one.padding
        before = max(0, -left)
        inside = min(width, one.width - left) - before
        line = width * one.in_channels

        def clear(start: Expr, count: int) -> None:
            def zeros(offset: Expr, size: int) -> None:
                write(target, start + offset, size, constant(0.0, size))

            _over_vectors(count, self.lanes, zeros)

        def clear_rows(first: Expr, last: Expr) -> None:
            with loop(first, last) as y:
                clear(y * line, line)

        first = tirx.max(0, -top)
        last = tirx.min(height, one.height - top)
        clear_rows(0, first)
        with loop(first, last) as y:
            start = y * line + before * one.in_channels
            source = ((top + y) * one.width + left + before) * one.in_channels

            def copy(offset: Expr, size: int) -> None:
                write(
                    target, start + offset, size, read(self.arguments.input, source + offset, size)
                )

            clear(y * line, before * one.in_channels)
            _over_vectors(inside * one.in_channels, self.lanes, copy)
            clear(start + inside * one.in_channels, (width - before - inside) * one.in_channels)
        clear_rows(last, height)

    def _transform(self, source: Buffer, target: Buffer, rows: int) -> None:
        """Transform the inputs, 4x4 of a channel after the other, to [position][tile][channel]."""
        depth, tiles = self.workload.in_channels, rows * self.columns
        line = self.columns * self.side + 2

        def vector(y: Expr, x: Expr, offset: Expr, size: int) -> None:
            half = _Square(self.patch, size)
            for b in range(self.patch):
                first = y * self.side * line + x * self.side + b
                d = [
                    read(source, (first + a * line) * depth + offset, size)
                    for a in range(self.patch)
                ]
                half.set_column(b, _inputs(d, size))
            for a in range(self.patch):
                for b, value in enumerate(_inputs(half.row(a), size)):
                    place = ((a * self.patch + b) * tiles + y * self.columns + x) * depth
                    write(target, place + offset, size, value)

        with loop(0, rows) as y, loop(0, self.columns) as x:
            _over_vectors(depth, self.lanes, lambda offset, size: vector(y, x, offset, size))

    def _transform_back(
        self, products: Buffer, row: Expr, rows: int, first: Expr, width: int, *, is_last: bool
    ) -> None:
        """Transform products [position][tile][channel] to outputs, and store those in the image."""
        one, tiles = self.workload, rows * self.columns
        last_height = one.out_height % self.side if is_last else 0
        is_right = self.column + self.columns == self.chunks.across
        last_width = one.out_width % self.side if is_right else 0

        def tile(y: Expr, x: Expr, height: int, columns: int) -> None:
            corner = ((row + y) * self.side) * one.out_width + (self.column + x) * self.side
            for offset, size in vector_chunks(width, self.lanes):
                half = _Square(self.patch, size)
                for b in range(self.patch):
                    m = [
                        read(
                            products,
                            ((a * self.patch + b) * tiles + y * self.columns + x) * width + offset,
                            size,
                        )
                        for a in range(self.patch)
                    ]
                    half.set_column(b, _outputs(m, size))
                bias = read(self.arguments.bias, first + offset, size)
                for v in range(height):
                    for u, value in enumerate(_outputs(half.row(v), size)[:columns]):
                        start = corner + v * one.out_width
                        store = output_store(one, self.arguments, start.__add__, first)
                        store(u, offset, size, value + bias)

        def line(y: Expr, height: int) -> None:
            with loop(0, self.columns - (last_width > 0)) as x:
                tile(y, x, height, self.side)
            if last_width:
                tile(y, self.columns - 1, height, last_width)

        with loop(0, rows - (last_height > 0)) as y:
            line(y, self.side)
        if last_height:
            line(rows - 1, last_height)


class _Square:
    """Vectors of a patch that LLVM keeps in registers as far as it has them."""

    def __init__(self, patch: int, size: int) -> None:
        self._patch, self._size = patch, size
        count = patch * patch * size
        self._values = T.alloc_buffer((count,), "float32", scope="local", layout=None)

    def set_column(self, column: int, values: list[Expr]) -> None:
        """Set the first values of a column."""
        for row, value in enumerate(values):
            write(self._values, (row * self._patch + column) * self._size, self._size, value)

    def row(self, row: int) -> list[Expr]:
        """Return the values of a row."""
        return [
            read(self._values, (row * self._patch + column) * self._size, self._size)
            for column in range(self._patch)
        ]


def _inputs(d: list[Expr], size: int) -> list[Expr]:
    """Transform a line of inputs (the matrix B of the source, transposed, times them)."""
    if len(d) == 4:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    four, five = (constant(factor, size) for factor in (4.0, 5.0))
    inner, outer = d[3] - d[1], d[4] - d[2]
    return [
        four * d[0] - five * d[2] + d[4],
        d[3] + d[4] - four * (d[1] + d[2]),
        d[4] - d[3] + four * (d[1] - d[2]),
        outer + (inner + inner),
        outer - (inner + inner),
        four * d[1] - five * d[3] + d[5],
    ]


def _outputs(m: list[Expr], size: int) -> list[Expr]:
    """Transform a line of products to outputs (the matrix A of the source, transposed)."""
    if len(m) == 4:
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
    two, four, eight = (constant(factor, size) for factor in (2.0, 4.0, 8.0))
    near, near_difference = m[1] + m[2], m[1] - m[2]
    far, far_difference = m[3] + m[4], m[3] - m[4]
    return [
        m[0] + near + far,
        near_difference + two * far_difference,
        near + four * far,
        near_difference + eight * far_difference + m[5],
    ]


def _stack(count: int) -> Buffer:
    return T.alloc_buffer((count,), "float32", scope="local", layout=None)


def _over_vectors(count: int, lanes: int, emit_vector: Callable[[Expr, int], None]) -> None:
    """Emit a loop over the full vectors of so many values, and the smaller ones apart."""
    full = count // lanes
    if full:
        with loop(0, full) as index:
            emit_vector(index * lanes, lanes)
    for offset, size in vector_chunks(count - full * lanes, lanes):
        emit_vector(full * lanes + offset, size)
