"""Pointwise convolution, and the fully connected layer as its 1x1 case: a matrix product.

Positions x input channels (rows of the input) times input x output channels. A register tile of
`schedule.tile` positions by `schedule.vectors` channel vectors is accumulated over the input
channels; weights are packed group by group so that the inner loop reads them in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    prefetch,
    read,
    spread,
)
from bignas.compile.schedule import Schedule, Split, column_groups, vector_chunks
from bignas.device_db.workload import Workload

__all__ = ["Product", "emit", "over_groups"]

LINE = 16  # float32 values of a cache line


def emit(name: str, workload: Workload, schedule: Schedule, lanes: int) -> Any:
    """Return the TIR function of a pointwise convolution."""
    pixels = workload.height * workload.width
    depth = workload.in_channels

    def body(arguments: Arguments) -> None:
        product = Product(arguments.input, arguments.weights, arguments.bias, depth)

        def tile(
            first_pixel: Expr, rows: int, place: Product, first: Expr, ahead: Sequence[Expr] = ()
        ) -> None:
            accumulators = Tile(rows, vector_chunks(place.width, lanes))
            place.accumulate(
                accumulators, lambda row: (first_pixel + row) * depth, schedule.unroll, ahead
            )
            store = output_store(workload, arguments, lambda row: first_pixel + row, first)
            accumulators.finish(store)

        def columns(first: Expr, width: int) -> None:
            place = product.at(first_channel=first, width=width)
            full, rest = divmod(pixels, schedule.tile)
            by_pixels = schedule.split is Split.PIXELS
            if full:
                with arguments.tasks(0, full, split=by_pixels) as index:
                    ahead = (tirx.min(index, place.lines - 1),) if pixels > 1 else ()
                    tile(index * schedule.tile, schedule.tile, place, first, ahead)
            if rest:
                with arguments.tasks(full, full + 1, split=by_pixels):
                    tile(full * schedule.tile, rest, place, first)

        over_groups(workload.out_channels, lanes, schedule, arguments, columns)

    return build_function(name, workload, body)


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product: where rows of inputs, packed weights and biases lie in their buffers."""

    source: Buffer
    weights: Buffer
    bias: Buffer | None
    depth: int
    first_weight: Expr = 0
    first_bias: Expr = 0
    width: int = 0

    def at(self, first_channel: Expr, width: int) -> "Product":
        """Return the part of the product that computes one group of output channels."""
        first_weight = self.first_weight + first_channel * self.depth
        first_bias = self.first_bias + first_channel
        return replace(self, first_weight=first_weight, first_bias=first_bias, width=width)

    @property
    def lines(self) -> int:
        """Cache lines that a group's weights have for each input channel, rounded up."""
        return -(-self.width // LINE)

    def accumulate(
        self,
        tile: Tile,
        row_start: Callable[[int], Expr],
        unroll: int,
        ahead: Sequence[Expr] = (),
    ) -> None:
        """Sum over the input channels; `row_start(row)` is where a position's inputs start.

        Meanwhile weights of the group that comes next are brought into the first-level cache. They
        are `lines` times as many lines as there are input channels: those `ahead`, out of
        `range(lines)`, are asked for, one line of each at each step of the reduction.
        """
        tile.start(self.bias, self.first_bias)

        def step(k: Expr) -> None:
            for part in ahead:
                line = (part * self.depth + k) * LINE
                prefetch(self.weights, self.first_weight + self.width * self.depth + line)
            for offset, size in tile.chunks:
                weight = read(self.weights, self.first_weight + k * self.width + offset, size)
                for row in range(tile.rows):
                    value = read(self.source, row_start(row) + k, 1)
                    total = tile.get(row, offset, size) + spread(value, size) * weight
                    tile.set(row, offset, size, total)

        if self.depth >= unroll:
            with loop(0, self.depth // unroll) as block:
                for inner in range(unroll):
                    step(block * unroll + inner)
        for k in range(self.depth - self.depth % unroll, self.depth):
            step(k)


def over_groups(
    channels: int,
    lanes: int,
    schedule: Schedule,
    arguments: Arguments,
    emit_group: Callable[[Expr, int], None],
) -> None:
    """Emit a loop over the channel groups of full width, and the narrower ones apart."""
    groups = column_groups(channels, lanes, schedule.vectors)
    width = groups[0][1]
    alike = sum(1 for _, size in groups if size == width)
    split = schedule.split is Split.CHANNELS
    with arguments.tasks(0, alike, split=split) as index:
        emit_group(index * width, width)
    for number, (start, size) in enumerate(groups[alike:], alike):
        with arguments.tasks(number, number + 1, split=split):
            emit_group(start, size)
