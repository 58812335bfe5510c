"""Winograd's algorithm: which convolutions it suits, and how they are cut into chunks.

F(m x m, 3x3): a tile of m x m outputs of a 3x3 window depends on a patch of (m + 2) x (m + 2)
inputs, and is computed with one multiplication for each value of the patch and pair of channels.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.
"""

import itertools
from dataclasses import dataclass

from bignas.device_db.workload import BYTES_PER_VALUE, Layout, Operator, Workload

__all__ = [
    "MOST_STACK_BYTES",
    "SIDES",
    "Chunks",
    "chunks_of",
    "positions_of",
    "stack_bytes",
    "suits",
    "transformed_count",
]

SIDES = (2, 4)  # of the tiles of outputs that there are transforms for
WINDOW = 3
FEWEST_CHANNELS = 8  # of input and output: with fewer the transforms cost more than they save
MOST_STACK_BYTES = 512 * 1024  # of a thread


@dataclass(frozen=True, slots=True)
class Chunks:
    """Tiles that are computed at once: rows of tiles by a piece of the columns of tiles.

    The image has `full` chunks of `rows` rows of tiles one below the other, then one of `rest`
    rows, which may be none; it stands apart where outputs of its last row lie outside the image.
    `pieces` are (first column, columns), of `across` columns.
    """

    rows: int
    full: int
    rest: int
    across: int
    pieces: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Chunks one below the other."""
        return self.full + (self.rest > 0)

    @property
    def tiles(self) -> int:
        """Tiles of the largest chunk."""
        return max(self.rows if self.full else 0, self.rest) * max(size for _, size in self.pieces)


def suits(workload: Workload, side: int) -> bool:
    """Whether a convolution can be computed by tiles of this side, and may gain by it."""
    one = workload
    return (
        one.operator is Operator.CONV
        and (one.kernel, one.stride) == (WINDOW, 1)
        and one.input_layout is Layout.NHWC
        and min(one.in_channels, one.out_channels) >= FEWEST_CHANNELS
        and min(one.out_height, one.out_width) > side
    )


def positions_of(side: int) -> int:
    """Return the values of a patch, each a matrix product of its own."""
    return (side + WINDOW - 1) ** 2


def chunks_of(workload: Workload, side: int, most_tiles: int) -> Chunks:
    """Cut the tiles of a convolution into chunks of at most so many."""
    down, across = -(-workload.out_height // side), -(-workload.out_width // side)
    pieces = -(-across // most_tiles)
    bounds = [across * index // pieces for index in range(pieces + 1)]
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    rows = max(1, min(down, most_tiles // max(sizes)))
    full, rest = divmod(down, rows)
    if workload.out_height % side and not rest:
        full, rest = full - 1, rows
    return Chunks(rows, full, rest, across, tuple(zip(bounds, sizes, strict=False)))


def stack_bytes(workload: Workload, side: int, most_tiles: int, group_width: int) -> int:
    """Return the stack memory that a kernel takes of the calling thread, about."""
    chunks = chunks_of(workload, side, most_tiles)
    columns = max(size for _, size in chunks.pieces)
    border = WINDOW - 1
    bordered = (chunks.rows * side + border) * (columns * side + border) * workload.in_channels
    products = positions_of(side) * chunks.tiles * (workload.in_channels + group_width)
    return (bordered + products) * BYTES_PER_VALUE


def transformed_count(workload: Workload, side: int) -> int:
    """Return the number of transformed weights."""
    return workload.in_channels * workload.out_channels * positions_of(side)
