"""Search spaces and architectures as plain frozen values; nothing here needs torch.

Decisions
- A `SearchSpace` lists what may vary, an `Architecture` is one point in it, a `Layer` is one fused
  operator of that point. Training, extraction, prediction and compilation all read `space.layers`,
  so what is trained, what is predicted and what ships are the same list.
- Layers are cached per (stage, input channels, input size, choice): a search asks for the same few
  thousand stages again and again, and a look-up costs about a microsecond.
- A block has a shortcut only where every architecture of the space has it: in all blocks but the
  first of a stage, and in a first block whose input and output width are one and the same number.
  Weights are thus never shared between children that add the shortcut and children that do not.

Source of the block and of the elastic dimensions: Yu et al., "BigNAS: Scaling Up Neural
Architecture Search with Big Single-Stage Models", ECCV 2020.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import ArchitectureError, SpaceError
from bignas.device_db.workload import Activation, Operator
from bignas.supernet.architecture import Architecture, StageChoice
from bignas.supernet.layer import Layer
from bignas.supernet.space_fields import (
    LIMITS,
    check_activation,
    check_name,
    check_number,
    check_odd,
    check_options,
    read_fields,
    to_plain,
)
from bignas.supernet.stage import StageSpace, block_layers

__all__ = ["SearchSpace"]

_CHOICE_VALUES = attrgetter("channels", "depth", "kernel", "expand")


class _Part(NamedTuple):
    """A run of layers with its totals, the unit of caching."""

    layers: tuple[Layer, ...]
    macs: int
    params: int


@dataclass(frozen=True)
class SearchSpace:
    """A space of child networks; see `StageSpace` for the stages.

    All option lists are sorted, unique and positive. `classes` is a default: the data decide
    (`with_classes`). Raises SpaceError naming the field that makes no sense.
    """

    name: str
    resolutions: tuple[int, ...]
    stem_channels: tuple[int, ...]
    stem_stride: int
    stem_activation: Activation
    stages: tuple[StageSpace, ...]
    head_channels: tuple[int, ...]
    head_activation: Activation
    stem_kernel: int = 3
    in_channels: int = 3
    classes: int = 10
    _parts: dict[tuple[object, ...], _Part] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_name(self.name)
        check_options("resolutions", self.resolutions, LIMITS["resolutions"])
        check_options("stem_channels", self.stem_channels, LIMITS["channels"])
        check_options("head_channels", self.head_channels, LIMITS["channels"])
        check_number("stem_kernel", self.stem_kernel, LIMITS["kernels"])
        check_odd("stem_kernel", (self.stem_kernel,))
        check_number("stem_stride", self.stem_stride, LIMITS["stride"])
        check_activation("stem_activation", self.stem_activation)
        check_activation("head_activation", self.head_activation)
        check_number("in_channels", self.in_channels, LIMITS["channels"])
        check_number("classes", self.classes, LIMITS["classes"])
        if not self.stages or not all(isinstance(stage, StageSpace) for stage in self.stages):
            raise SpaceError("stages must be a list of at least one stage")

    # --- points of the space -------------------------------------------------------------------

    def smallest(self) -> Architecture:
        """The architecture with the first option of every dimension."""
        return self._architecture([options[0] for _, options in self._axes])

    def middle(self) -> Architecture:
        """The architecture with the middle option of every dimension, of two the smaller one."""
        return self._architecture([options[(len(options) - 1) // 2] for _, options in self._axes])

    def biggest(self) -> Architecture:
        """The architecture with the last option of every dimension."""
        return self._architecture([options[-1] for _, options in self._axes])

    def sample(self, rng: np.random.Generator) -> Architecture:
        """A random architecture, uniform in every dimension."""
        picks = rng.integers(0, self._axis_sizes)
        return self._architecture(
            [options[pick] for (_, options), pick in zip(self._axes, picks, strict=True)]
        )

    def mutate(
        self, arch: Architecture, rng: np.random.Generator, probability: float
    ) -> Architecture:
        """Change each elastic dimension with `probability` to another option, and at least one.

        The result differs from `arch` unless the space holds a single architecture.
        """
        values = self._values(arch)
        elastic = [index for index, (_, options) in enumerate(self._axes) if len(options) > 1]
        if not elastic:
            return arch
        changed = [index for index in elastic if rng.random() < probability]
        for index in changed or [elastic[int(rng.integers(len(elastic)))]]:
            others = [option for option in self._axes[index][1] if option != values[index]]
            values[index] = others[int(rng.integers(len(others)))]
        return self._architecture(values)

    def cross(
        self, first: Architecture, second: Architecture, rng: np.random.Generator
    ) -> Architecture:
        """Take every dimension from one of the two parents at random."""
        coins = rng.random(len(self._axes)) < 0.5
        pairs = zip(self._values(first), self._values(second), coins, strict=True)
        return self._architecture([a if coin else b for a, b, coin in pairs])

    def architectures(self) -> Iterator[Architecture]:
        """Every architecture, in a fixed order; `size` of them, so mind the size first."""
        for values in itertools.product(*(options for _, options in self._axes)):
            yield self._architecture(values)

    def size(self) -> int:
        """Number of architectures."""
        return math.prod(len(options) for _, options in self._axes)

    def dimensions(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, options) of every dimension with more than one option, e.g. "stages.2.depth"."""
        return [(name, options) for name, options in self._axes if len(options) > 1]

    def positions(self, arch: Architecture) -> tuple[int, ...]:
        """Which option `arch` takes in each entry of `dimensions`, counted from 0.

        `arch` is taken to lie in the space.
        """
        values = self._values(arch)
        return tuple(
            options.index(value)
            for value, (_, options) in zip(values, self._axes, strict=True)
            if len(options) > 1
        )

    def at(self, positions: Sequence[int]) -> Architecture:
        """The architecture that takes these options; the inverse of `positions`."""
        given = iter(positions)
        return self._architecture(
            [options[next(given) if len(options) > 1 else 0] for _, options in self._axes]
        )

    def option_values(self, archs: Sequence[Architecture]) -> NDArray[np.int64]:
        """What each architecture takes in every dimension, single options too: [n, dimensions].

        The columns are resolution, stem channels, for each stage channels, depth, kernel and
        expand, then head channels. The architectures are taken to have as many stages as the space.
        """
        columns = len(self._axes)
        flat = itertools.chain.from_iterable(map(self._values, archs))
        values = np.fromiter(flat, dtype=np.int64, count=len(archs) * columns)
        return values.reshape(len(archs), columns)

    def encode(self, arch: Architecture) -> np.ndarray:
        """Float vector with one column per entry of `dimensions`, from 0 (first) to 1 (last).

        Raises ArchitectureError when the space does not hold `arch`.
        """
        self.check(arch)
        return np.array(
            [
                (value - options[0]) / (options[-1] - options[0])
                for value, (_, options) in zip(self._values(arch), self._axes, strict=True)
                if len(options) > 1
            ],
            dtype=np.float64,
        )

    def contains(self, arch: Architecture) -> bool:
        """Whether `check` passes."""
        try:
            self.check(arch)
        except ArchitectureError:
            return False
        return True

    def check(self, arch: Architecture) -> None:
        """Raise ArchitectureError naming the first field outside the space and what it allows."""
        if len(arch.stages) != len(self.stages):
            raise ArchitectureError(
                f"stages: {len(arch.stages)} given, space {self.name!r} has {len(self.stages)}"
            )
        for value, (name, options) in zip(self._values(arch), self._axes, strict=True):
            if value not in options:
                allowed = ", ".join(map(str, options))
                raise ArchitectureError(
                    f"{name} = {value} is not in space {self.name!r}, allowed: {allowed}"
                )

    # --- what an architecture consists of ------------------------------------------------------

    def layers(self, arch: Architecture) -> tuple[Layer, ...]:
        """The fused operators of `arch` in order of execution.

        `arch` is taken to lie in the space (`check` it at the edge); this is the hot path.
        """
        return tuple(layer for part in self._plan(arch) for layer in part.layers)

    def stage_layers(
        self, index: int, in_channels: int, in_height: int, choice: StageChoice
    ) -> tuple[Layer, ...]:
        """The layers of stage `index` alone, from the cache; its input is square.

        Its output has `choice.channels` channels and ceil(in_height / stride) rows.
        """
        return self._stage(index, in_channels, in_height, choice).layers

    def macs(self, arch: Architecture) -> int:
        """Multiply-accumulates of one image; pooling and the squeeze-excite scale count as none."""
        return sum(part.macs for part in self._plan(arch))

    def macs_at(self, rows: np.ndarray) -> np.ndarray:
        """Multiply-accumulates [n] of many architectures, given as rows of `positions` [n, d].

        What stages consist of repeats, so each is computed once: far faster than one by one.
        """
        sizes = np.array([len(options) for _, options in self.dimensions()], dtype=np.int64)
        total = np.zeros(len(rows), dtype=np.int64)
        for part, columns in enumerate(self._part_columns):
            strides = np.cumprod([1, *sizes[columns]])[:-1]
            codes = np.asarray(rows)[:, columns] @ strides
            _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
            plans = [self._plan(self.at(row)) for row in rows[first].tolist()]
            total += np.array([plan[part].macs for plan in plans], dtype=np.int64)[inverse]
        return total

    def params(self, arch: Architecture) -> int:
        """Parameters of the child as torch counts them.

        Convolution weights, batch-norm scale and shift, biases of the squeeze-excite gates, weight
        and bias of the classifier. Folding the batch norms makes it fewer by one per channel.
        """
        return sum(part.params for part in self._plan(arch))

    def has_shortcut(self, stage: int, block: int) -> bool:
        """Whether this block adds its input to its output, in every architecture alike."""
        if block > 0:
            return True
        before = self.stem_channels if stage == 0 else self.stages[stage - 1].channels
        here = self.stages[stage]
        return here.stride == 1 and len(before) == 1 and before == here.channels

    # --- identity and form ---------------------------------------------------------------------

    def with_classes(self, classes: int) -> Self:
        """The same space for another number of classes."""
        return self if classes == self.classes else replace(self, classes=classes)

    def only(self, arch: Architecture) -> Self:
        """The space that holds nothing but `arch`, as the same network: for training it alone.

        Raises ArchitectureError when this space does not hold it, or when it would be another
        network there: widths that are equal by chance would become a shortcut.
        """
        self.check(arch)
        stages = tuple(
            replace(
                stage,
                channels=(choice.channels,),
                depths=(choice.depth,),
                kernels=(choice.kernel,),
                expands=(choice.expand,),
            )
            for stage, choice in zip(self.stages, arch.stages, strict=True)
        )
        alone = replace(
            self,
            resolutions=(arch.resolution,),
            stem_channels=(arch.stem_channels,),
            stages=stages,
            head_channels=(arch.head_channels,),
        )
        if alone.layers(arch) != self.layers(arch):
            raise ArchitectureError("alone, the architecture would have more shortcuts")
        return alone

    @functools.cached_property
    def digest(self) -> str:
        """Hash of everything but the name."""
        data = self.to_dict()
        del data["name"]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON form; space files hold the same keys."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the JSON form back; SpaceError names the key that is wrong."""
        values = read_fields(data, cls, "the space")
        stages = values.get("stages")
        if not isinstance(stages, Sequence) or isinstance(stages, str) or not stages:
            raise SpaceError("stages must be a list of at least one stage")
        parsed = []
        for index, stage in enumerate(stages):
            try:
                parsed.append(StageSpace(**read_fields(stage, StageSpace, "the stage")))
            except SpaceError as error:
                raise SpaceError(f"stages[{index}]: {error}") from None
        return cls(**{**values, "stages": tuple(parsed)})

    # --- inside --------------------------------------------------------------------------------

    @functools.cached_property
    def _axes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """All dimensions in the order of `_values`, also those with a single option."""
        axes = [("resolution", self.resolutions), ("stem_channels", self.stem_channels)]
        for index, stage in enumerate(self.stages):
            axes.append((f"stages.{index}.channels", stage.channels))
            axes.append((f"stages.{index}.depth", stage.depths))
            axes.append((f"stages.{index}.kernel", stage.kernels))
            axes.append((f"stages.{index}.expand", stage.expands))
        axes.append(("head_channels", self.head_channels))
        return tuple(axes)

    @functools.cached_property
    def _axis_sizes(self) -> np.ndarray:
        return np.array([len(options) for _, options in self._axes])

    @functools.cached_property
    def _part_columns(self) -> list[list[int]]:
        """Which entries of `dimensions` each part of `_plan` depends on."""
        names = [name for name, _ in self.dimensions()]
        before = ["stem_channels", *(f"stages.{i}.channels" for i in range(len(self.stages)))]
        parts: list[tuple[str, ...]] = [("stem_channels",)]
        parts += [(before[index], f"stages.{index}.") for index in range(len(self.stages))]
        parts.append((before[-1], "head_channels"))
        return [
            [column for column, name in enumerate(names) if name.startswith(("resolution", *part))]
            for part in parts
        ]

    @staticmethod
    def _values(arch: Architecture) -> list[int]:
        values = [arch.resolution, arch.stem_channels]
        for choice in map(_CHOICE_VALUES, arch.stages):
            values += choice
        values.append(arch.head_channels)
        return values

    @staticmethod
    def _architecture(values: Sequence[int]) -> Architecture:
        stages = tuple(StageChoice(*values[at : at + 4]) for at in range(2, len(values) - 1, 4))
        return Architecture(values[0], values[1], stages, values[-1])

    def _plan(self, arch: Architecture) -> list[_Part]:
        size = arch.resolution
        channels = arch.stem_channels
        parts = [self._stem(size, channels)]
        size = -(-size // self.stem_stride)
        for index, choice in enumerate(arch.stages):
            parts.append(self._stage(index, channels, size, choice))
            channels = choice.channels
            size = -(-size // self.stages[index].stride)
        parts.append(self._tail(size, channels, arch.head_channels))
        return parts

    def _stem(self, size: int, channels: int) -> _Part:
        key = ("stem", size, channels)
        part = self._parts.get(key)
        if part is None:
            stem = Layer(
                "stem",
                Operator.CONV,
                size,
                size,
                self.in_channels,
                channels,
                kernel=self.stem_kernel,
                stride=self.stem_stride,
                padding=self.stem_kernel // 2,
                activation=self.stem_activation,
            )
            part = self._parts[key] = _part([stem])
        return part

    def _stage(self, index: int, in_channels: int, size: int, choice: StageChoice) -> _Part:
        key = (index, in_channels, size, choice)
        part = self._parts.get(key)
        if part is None:
            layers: list[Layer] = []
            stage = self.stages[index]
            stride = stage.stride
            for block in range(choice.depth):
                shortcut = self.has_shortcut(index, block)
                prefix = f"stages.{index}.{block}"
                layers += block_layers(prefix, stage, choice, in_channels, size, stride, shortcut)
                in_channels, size, stride = choice.channels, -(-size // stride), 1
            part = self._parts[key] = _part(layers)
        return part

    def _tail(self, size: int, channels: int, head: int) -> _Part:
        key = ("tail", size, channels, head)
        part = self._parts.get(key)
        if part is None:
            activation = self.head_activation
            pointwise, pool = Operator.POINTWISE, Operator.GLOBAL_POOL
            layers = [
                Layer("head", pointwise, size, size, channels, head, activation=activation),
                Layer("pool", pool, size, size, head, head, normalized=False),
                Layer("classifier", pointwise, 1, 1, head, self.classes, normalized=False),
            ]
            part = self._parts[key] = _part(layers)
        return part


def _part(layers: list[Layer]) -> _Part:
    return _Part(
        tuple(layers),
        sum(layer.macs for layer in layers),
        sum(layer.params for layer in layers),
    )
