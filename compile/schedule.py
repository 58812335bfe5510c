"""Schedules: the few tile sizes worth trying for a workload on a target.

A candidate set is pruned by a register model before anything is built: an accumulator tile of
`tile x vectors` registers must leave room for weights, inputs and the compiler's copies
in the register file, else the inner loop spills.
"""

import json
from dataclasses import dataclass, fields, replace
from enum import StrEnum

from bignas.compile.winograd import (
    MOST_STACK_BYTES,
    SIDES,
    chunks_of,
    positions_of,
    stack_bytes,
    suits,
)
from bignas.device_db.errors import InputError
from bignas.device_db.target import Target
from bignas.device_db.workload import BYTES_PER_VALUE, Operator, Workload

__all__ = [
    "Schedule",
    "Split",
    "candidates",
    "column_groups",
    "task_count",
    "vector_chunks",
]

MAX_CANDIDATES = 6
MAX_TILE = 16
NEAR_BYTES = 1024 * 1024  # of weights that lie in a core's own cache
NEAR_SLOTS = 2.0  # issue slots that a vector of them takes to arrive
FAR_SLOTS = 12.0  # and from further away
_ALWAYS_WRITTEN = {"tile", "vectors", "unroll"}
ALIKE = 0.05  # shares of threads that differ by less count as equal


class Split(StrEnum):
    """Which axis of its output a kernel divides among threads."""

    NONE = "none"  # one thread computes everything
    PIXELS = "pixels"  # tiles of pixels, or rows of the image
    CHANNELS = "channels"  # groups of output channels


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one kernel is tiled.

    `tile` positions (pixels) by `vectors` channel vectors are accumulated in registers at once; the
    reduction loop is unrolled `unroll` times. In an inverted bottleneck these are the tile of the
    expansion; `project_tile` and `project_vectors` are that of the projection, and `window_tile`
    that of the depthwise convolution, in pixels. With a `winograd_side` a convolution is computed
    by Winograd's algorithm, `tile` squares of outputs of that side at once.
    """

    tile: int = 1
    vectors: int = 1
    unroll: int = 1
    split: Split = Split.NONE
    window_tile: int = 0
    project_tile: int = 0
    project_vectors: int = 0
    winograd_side: int = 0

    def __post_init__(self) -> None:
        inside = (self.window_tile, self.project_tile, self.project_vectors)
        unknown = self.winograd_side not in (0, *SIDES)
        if min(self.tile, self.vectors, self.unroll) < 1 or min(inside) < 0 or unknown:
            raise InputError(f"a schedule needs positive factors, not {self}")

    def to_text(self) -> str:
        """Return the canonical text form that is stored with measurements."""
        values = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name in _ALWAYS_WRITTEN or getattr(self, one.name) != one.default
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "Schedule":
        """Return the schedule of a text form. Raises InputError when it is none."""
        try:
            values = json.loads(text)
            values["split"] = Split(values.get("split", Split.NONE))
            return cls(**values)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"not a schedule: {text[:80]!r}") from error


def vector_chunks(channels: int, lanes: int) -> tuple[tuple[int, int], ...]:
    """Split channels into vectors (offset, lanes): full ones, then halves down to single lanes."""
    chunks: list[tuple[int, int]] = []
    offset = 0
    width = lanes
    while offset < channels:
        while width > channels - offset:
            width //= 2
        chunks.append((offset, width))
        offset += width
    return tuple(chunks)


def column_groups(channels: int, lanes: int, vectors: int) -> tuple[tuple[int, int], ...]:
    """Split channels into groups (offset, width) of at most `vectors` full vectors.

    Weights are packed group by group, so this split is shared by the kernels and by the packing.
    """
    width = lanes * vectors
    return tuple((start, min(width, channels - start)) for start in range(0, channels, width))


def candidates(workload: Workload, target: Target, threads: int = 1) -> tuple[Schedule, ...]:
    """Return the schedules worth measuring, the best guess first."""
    lanes, registers = target.vector_lanes, target.vector_registers
    match workload.operator:
        case Operator.POINTWISE:
            pixels = workload.height * workload.width
            tiles = _register_tiles(pixels, workload.out_channels, lanes, registers)
        case Operator.CONV:
            tiles = _conv_tiles(workload, lanes, registers)
        case Operator.DEPTHWISE:
            tiles = _depthwise_tiles(workload, lanes, registers)
        case Operator.MAX_POOL | Operator.AVERAGE_POOL:
            present = len(vector_chunks(workload.out_channels, lanes))
            widths = dict.fromkeys(min(vectors, present) for vectors in (4, 2, 1, 8))
            tiles = tuple(Schedule(1, vectors, 1) for vectors in widths)
        case Operator.GLOBAL_POOL | Operator.SCALE:
            widest = -(-workload.out_channels // lanes)
            tiles = tuple(
                Schedule(1, vectors, 1) for vectors in (4, 8) if vectors <= max(widest, 4)
            )
        case Operator.INVERTED_BOTTLENECK:
            tiles = _bottleneck_tiles(workload, lanes, registers)
    if threads == 1:
        return tiles
    return tuple(_split(workload, one, lanes, threads) for one in tiles)


def task_count(workload: Workload, schedule: Schedule, lanes: int) -> int:
    """Return into how many tasks a kernel is divided; its range of tasks is part of each call."""
    match schedule.split:
        case Split.NONE:
            return 1
        case Split.CHANNELS:
            return len(column_groups(workload.out_channels, lanes, schedule.vectors))
        case Split.PIXELS if workload.operator in (Operator.POINTWISE, Operator.SCALE):
            return -(-workload.height * workload.width // schedule.tile)
        case Split.PIXELS if schedule.winograd_side:
            return chunks_of(workload, schedule.winograd_side, schedule.tile).count
        case Split.PIXELS:
            return workload.out_height


def _split(workload: Workload, schedule: Schedule, lanes: int, threads: int) -> Schedule:
    """Divide a kernel where the shares of the threads are most equal.

    Where both axes are, threads share the smaller of weights and activations: kernels of early
    layers are divided by pixels, which also leaves a layer's output in the cache of the core that
    reads it next, those of late layers by channels.
    """
    activations = workload.height * workload.width * workload.in_channels
    axes = [Split.PIXELS, Split.CHANNELS]
    if workload.operator is Operator.GLOBAL_POOL:
        axes = [Split.CHANNELS]
    elif workload.operator is Operator.INVERTED_BOTTLENECK:
        axes = [Split.PIXELS]
    elif workload.weight_count > activations:
        axes.reverse()

    def waste(axis: Split) -> float:
        tasks = task_count(workload, replace(schedule, split=axis), lanes)
        return -(-tasks // threads) * threads / tasks

    best = min(waste(axis) for axis in axes)
    return replace(schedule, split=next(a for a in axes if waste(a) <= best + ALIKE))


def _bottleneck_tiles(workload: Workload, lanes: int, registers: int) -> tuple[Schedule, ...]:
    """Tiles of a fused block, whose matrix products are computed row by row of the image.

    Inputs of both products lie in the nearest cache, so one channel vector by many pixels is nearly
    always best; where rows are short, the projection may want more vectors and fewer pixels.
    """
    expand = _narrow_tile(workload.width, registers)
    narrow = Schedule(_narrow_tile(workload.out_width, registers), 1)
    ranked = _register_tiles(workload.out_width, workload.out_channels, lanes, registers)
    return tuple(
        Schedule(
            expand,
            1,
            window_tile=min(8, workload.out_width),
            project_tile=project.tile,
            project_vectors=project.vectors,
        )
        for project in dict.fromkeys((narrow, ranked[0]))
    )


def _conv_tiles(workload: Workload, lanes: int, registers: int) -> tuple[Schedule, ...]:
    """Tiles of a dense convolution: window by window, and by Winograd's algorithm where that suits.

    They are ranked by issue slots and by the time that weights take to arrive, which each chunk
    of tiles reads anew; the best of each kind are kept, as the model knows no caches but two.
    """
    direct = _register_tiles(workload.out_width, workload.out_channels, lanes, registers)
    kinds = [_winograd_tiles(workload, side, lanes, registers)[:2] for side in SIDES]
    if not any(kinds):
        return direct
    kept = [
        *direct[: MAX_CANDIDATES - sum(map(len, kinds))],
        *(one for kind in kinds for one in kind),
    ]
    return tuple(sorted(kept, key=lambda one: _conv_cost(workload, one, lanes)))


def _winograd_tiles(
    workload: Workload, side: int, lanes: int, registers: int
) -> tuple[Schedule, ...]:
    """Tiles by Winograd's algorithm: matrix products of squares of outputs by channels."""
    if not suits(workload, side):
        return ()
    accumulators = registers * 2 // 3
    column_vectors = len(vector_chunks(workload.out_channels, lanes))
    families: list[Schedule] = []
    for vectors in range(1, min(4, column_vectors) + 1):
        tiles = range(2, min(accumulators // vectors, MAX_TILE) + 1)
        fitting = [
            Schedule(tile, vectors, winograd_side=side)
            for tile in tiles
            if chunks_of(workload, side, tile).tiles <= tile
            and stack_bytes(workload, side, tile, vectors * lanes) <= MOST_STACK_BYTES
        ]
        if fitting:
            families.append(min(fitting, key=lambda one: _conv_cost(workload, one, lanes)))
    return tuple(sorted(families, key=lambda one: _conv_cost(workload, one, lanes)))


def _conv_cost(workload: Workload, schedule: Schedule, lanes: int) -> float:
    """Estimate the issue slots of a dense convolution for each of its input channels."""
    column_vectors = len(vector_chunks(workload.out_channels, lanes))
    side, vectors = schedule.winograd_side, schedule.vectors
    if not side:
        products, passes = workload.kernel**2, 1
        slots = workload.out_height * _issue_slots(
            workload.out_width, schedule.tile, column_vectors, vectors
        )
    else:
        chunks = chunks_of(workload, side, schedule.tile)
        products, passes = positions_of(side), chunks.count * len(chunks.pieces)
        tiles = -(-workload.out_height // side) * -(-workload.out_width // side)
        slots = _issue_slots(tiles, chunks.tiles, column_vectors, vectors)
    size = products * workload.in_channels * workload.out_channels * BYTES_PER_VALUE
    arrival = NEAR_SLOTS if size <= NEAR_BYTES else FAR_SLOTS
    return products * (slots + passes * column_vectors * arrival)


def _narrow_tile(pixels: int, registers: int) -> int:
    """Return the pixels of a tile of one channel vector: a row in equal shares, as few as fit."""
    shares = -(-pixels // min(registers * 2 // 3, MAX_TILE))
    return -(-pixels // shares)


def _register_tiles(pixels: int, channels: int, lanes: int, registers: int) -> tuple[Schedule, ...]:
    """Tiles of a matrix product, ranked by estimated issue slots and pruned by registers.

    LLVM rotates accumulators through spare registers, so that measured kernels lose a third of
    their speed once the tile fills more than about two thirds of the register file.
    """
    accumulators = registers * 2 // 3
    column_vectors = len(vector_chunks(channels, lanes))
    most_vectors = 8 if pixels == 1 else 4
    families: list[list[tuple[float, Schedule]]] = []
    for vectors in range(1, min(most_vectors, column_vectors) + 1):
        family = [
            (_issue_slots(pixels, tile, column_vectors, vectors), Schedule(tile, vectors))
            for tile in range(1, min(pixels, accumulators // vectors, MAX_TILE) + 1)
        ]
        family.sort(key=lambda entry: (entry[0], -entry[1].tile))
        families.append(family)
    # the best of each width of group first, so that a wrong cost model hides no whole family
    leaders = sorted((family[0] for family in families), key=lambda entry: entry[0])
    others = sorted((entry for family in families for entry in family[1:3]), key=lambda e: e[0])
    return tuple(schedule for _, schedule in (leaders + others)[:MAX_CANDIDATES])


def _issue_slots(pixels: int, tile: int, column_vectors: int, vectors: int) -> float:
    """Estimate the issue slots of one reduction step over all tiles of a matrix product."""
    groups = -(-column_vectors // vectors)
    full, rest = divmod(pixels, tile)
    slots = 0.0
    for rows, count in ((tile, full), (rest, 1 if rest else 0)):
        multiply_adds = rows * column_vectors
        loads = column_vectors + rows * groups
        slots += count * max(multiply_adds + 0.1 * loads, 4.0 * groups)
    return slots


def _depthwise_tiles(workload: Workload, lanes: int, registers: int) -> tuple[Schedule, ...]:
    """Tiles of a depthwise convolution: pixels of one output row by vectors of channels."""
    vectors_present = len(vector_chunks(workload.out_channels, lanes))
    wanted = [(8, 1, 1), (4, 2, 1), (6, 1, 1), (8, 1, 2), (4, 2, 2)]
    if workload.out_width < 8:
        wanted.insert(0, (workload.out_width, 1, 2))
    result: list[Schedule] = []
    for tile, vectors, unroll in wanted:
        schedule = Schedule(min(tile, workload.out_width), vectors, unroll)
        accumulators = schedule.tile * vectors
        fits = accumulators + 2 * vectors + 1 <= registers and vectors <= vectors_present
        if fits and schedule not in result:
            result.append(schedule)
    return tuple(result)[:MAX_CANDIDATES] or (Schedule(min(4, workload.out_width)),)
