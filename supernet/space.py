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

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import ArchitectureError, SpaceError
from bignas.device_db.records import Activation, Operator

__all__ = ["Architecture", "Layer", "SearchSpace", "StageChoice", "StageSpace", "squeeze_channels"]

_LIMITS = {
    "resolutions": 2048,
    "channels": 8192,
    "depths": 64,
    "kernels": 15,
    "expands": 32,
    "stride": 4,
    "classes": 100_000,
}
_SQUEEZE_DIVISOR = 4  # squeeze-excite width = block input / 4, as in EfficientNet
_CHANNEL_STEP = 8


@dataclass(frozen=True)
class StageSpace:
    """What may vary in one stage of blocks. Raises SpaceError when a field makes no sense."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    stride: int
    activation: Activation
    squeeze_excite: bool

    def __post_init__(self) -> None:
        _check_options("channels", self.channels, _LIMITS["channels"])
        _check_options("depths", self.depths, _LIMITS["depths"])
        _check_options("kernels", self.kernels, _LIMITS["kernels"])
        _check_options("expands", self.expands, _LIMITS["expands"])
        _check_number("stride", self.stride, _LIMITS["stride"])
        _check_odd("kernels", self.kernels)
        _check_activation("activation", self.activation)
        if not isinstance(self.squeeze_excite, bool):
            raise SpaceError(f"squeeze_excite must be true or false, not {self.squeeze_excite!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `SearchSpace.from_dict` reads it back."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class StageChoice:
    """One stage of an architecture. Raises ArchitectureError unless all are positive integers."""

    channels: int
    depth: int
    kernel: int
    expand: int

    def __post_init__(self) -> None:
        for name in ("channels", "depth", "kernel", "expand"):
            _check_positive(name, getattr(self, name))


_CHOICE_VALUES = attrgetter("channels", "depth", "kernel", "expand")


@dataclass(frozen=True)
class Architecture:
    """One child network: its input resolution in pixels and the width, depth and kernels inside.

    Raises ArchitectureError for values that no space could hold; whether a particular space holds
    it is the question of `SearchSpace.check`.
    """

    resolution: int
    stem_channels: int
    stages: tuple[StageChoice, ...]
    head_channels: int

    def __post_init__(self) -> None:
        for name in ("resolution", "stem_channels", "head_channels"):
            _check_positive(name, getattr(self, name))
        if not self.stages or not all(isinstance(stage, StageChoice) for stage in self.stages):
            raise ArchitectureError("stages must be a list of at least one stage")

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as architecture files hold it."""
        return {
            "resolution": self.resolution,
            "stem_channels": self.stem_channels,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "head_channels": self.head_channels,
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the JSON form back; ArchitectureError names the key that is wrong."""
        fields = _exact_keys(data, cls, "architecture")
        stages = fields["stages"]
        if not isinstance(stages, list):
            raise ArchitectureError("stages must be a list of at least one stage")
        choices = []
        for index, stage in enumerate(stages):
            values = _exact_keys(stage, StageChoice, f"stages[{index}]")
            try:
                choices.append(StageChoice(**values))
            except ArchitectureError as error:
                raise ArchitectureError(f"stages[{index}].{error}") from None
        return cls(**{**fields, "stages": tuple(choices)})

    @functools.cached_property
    def key(self) -> str:
        """Canonical JSON text: equal architectures have equal keys."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Layer:
    """One fused operator: convolution, batch norm, residual sum and activation in one step.

    `name` is the module path in the extracted child. `height` and `width` are those of the input.
    `normalized` tells whether a batch norm is folded in; otherwise the operator has a bias.
    """

    name: str
    operator: Operator
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    activation: Activation = Activation.NONE
    residual: bool = False
    normalized: bool = True

    @property
    def out_height(self) -> int:
        """Height of the output in pixels."""
        if self.operator is Operator.GLOBAL_POOL:
            return 1
        return (self.height + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Width of the output in pixels."""
        if self.operator is Operator.GLOBAL_POOL:
            return 1
        return (self.width + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def weight_count(self) -> int:
        """Number of kernel weights, without batch norm and bias."""
        if self.operator in (Operator.GLOBAL_POOL, Operator.SCALE):
            return 0
        fan_in = 1 if self.operator is Operator.DEPTHWISE else self.in_channels
        return self.out_channels * fan_in * self.kernel * self.kernel

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; pooling and the squeeze-excite scale count as none."""
        return self.weight_count * self.out_height * self.out_width

    @property
    def params(self) -> int:
        """Trainable parameters: weights plus batch-norm scale and shift, or the bias."""
        if self.operator in (Operator.GLOBAL_POOL, Operator.SCALE):
            return 0
        return self.weight_count + self.out_channels * (2 if self.normalized else 1)


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
        _check_name(self.name)
        _check_options("resolutions", self.resolutions, _LIMITS["resolutions"])
        _check_options("stem_channels", self.stem_channels, _LIMITS["channels"])
        _check_options("head_channels", self.head_channels, _LIMITS["channels"])
        _check_number("stem_kernel", self.stem_kernel, _LIMITS["kernels"])
        _check_odd("stem_kernel", (self.stem_kernel,))
        _check_number("stem_stride", self.stem_stride, _LIMITS["stride"])
        _check_activation("stem_activation", self.stem_activation)
        _check_activation("head_activation", self.head_activation)
        _check_number("in_channels", self.in_channels, _LIMITS["channels"])
        _check_number("classes", self.classes, _LIMITS["classes"])
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
        return self if classes == self.classes else dataclasses.replace(self, classes=classes)

    def only(self, arch: Architecture) -> Self:
        """The space that holds nothing but `arch`, as the same network: for training it alone.

        Raises ArchitectureError when this space does not hold it, or when it would be another
        network there: widths that are equal by chance would become a shortcut.
        """
        self.check(arch)
        stages = tuple(
            dataclasses.replace(
                stage,
                channels=(choice.channels,),
                depths=(choice.depth,),
                kernels=(choice.kernel,),
                expands=(choice.expand,),
            )
            for stage, choice in zip(self.stages, arch.stages, strict=True)
        )
        alone = dataclasses.replace(
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
        return _plain(self)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the JSON form back; SpaceError names the key that is wrong."""
        values = _space_fields(data, cls, "the space")
        stages = values.get("stages")
        if not isinstance(stages, Sequence) or isinstance(stages, str) or not stages:
            raise SpaceError("stages must be a list of at least one stage")
        parsed = []
        for index, stage in enumerate(stages):
            try:
                parsed.append(StageSpace(**_space_fields(stage, StageSpace, "the stage")))
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
                layers += _block(prefix, stage, choice, in_channels, size, stride, shortcut)
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


def _block(
    prefix: str,
    stage: StageSpace,
    choice: StageChoice,
    in_channels: int,
    size: int,
    stride: int,
    shortcut: bool,
) -> list[Layer]:
    """One inverted residual block: expand, depthwise, squeeze-excite, project."""
    hidden = in_channels * choice.expand
    out_size = -(-size // stride)
    activation = stage.activation
    layers = []
    if choice.expand > 1:
        layers.append(
            Layer(
                f"{prefix}.expand",
                Operator.POINTWISE,
                size,
                size,
                in_channels,
                hidden,
                activation=activation,
            )
        )
    layers.append(
        Layer(
            f"{prefix}.depthwise",
            Operator.DEPTHWISE,
            size,
            size,
            hidden,
            hidden,
            kernel=choice.kernel,
            stride=stride,
            padding=choice.kernel // 2,
            activation=activation,
        )
    )
    if stage.squeeze_excite:
        layers += _squeeze_excite(prefix, activation, in_channels, hidden, out_size)
    layers.append(
        Layer(
            f"{prefix}.project",
            Operator.POINTWISE,
            out_size,
            out_size,
            hidden,
            choice.channels,
            residual=shortcut,
        )
    )
    return layers


def _squeeze_excite(
    prefix: str, activation: Activation, in_channels: int, hidden: int, size: int
) -> list[Layer]:
    """Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, with EfficientNet's widths."""
    squeezed = squeeze_channels(in_channels)
    pointwise = Operator.POINTWISE
    return [
        Layer(
            f"{prefix}.squeeze_pool",
            Operator.GLOBAL_POOL,
            size,
            size,
            hidden,
            hidden,
            normalized=False,
        ),
        Layer(
            f"{prefix}.squeeze_reduce",
            pointwise,
            1,
            1,
            hidden,
            squeezed,
            activation=activation,
            normalized=False,
        ),
        Layer(
            f"{prefix}.squeeze_gate",
            pointwise,
            1,
            1,
            squeezed,
            hidden,
            activation=Activation.SIGMOID,
            normalized=False,
        ),
        Layer(
            f"{prefix}.squeeze_scale",
            Operator.SCALE,
            size,
            size,
            hidden,
            hidden,
            normalized=False,
        ),
    ]


def squeeze_channels(in_channels: int) -> int:
    """Inner width of a squeeze-excite: a quarter of the block's input, a multiple of 8, not 0."""
    steps = (in_channels // _SQUEEZE_DIVISOR + _CHANNEL_STEP // 2) // _CHANNEL_STEP
    return max(1, steps) * _CHANNEL_STEP


def _part(layers: list[Layer]) -> _Part:
    return _Part(
        tuple(layers),
        sum(layer.macs for layer in layers),
        sum(layer.params for layer in layers),
    )


def _plain(value: SearchSpace | StageSpace) -> dict[str, Any]:
    """Public fields of a space as JSON types."""
    plain: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        if not item.init:
            continue
        content = getattr(value, item.name)
        if item.name == "stages":
            content = [stage.to_dict() for stage in content]
        elif isinstance(content, tuple):
            content = list(content)
        elif isinstance(content, Activation):
            content = content.value
        plain[item.name] = content
    return plain


def _space_fields(data: object, kind: type[Any], what: str) -> dict[str, Any]:
    """Check the keys of a JSON object against a dataclass and turn lists into tuples."""
    if not isinstance(data, Mapping):
        raise SpaceError(f"{what} must be a table of keys, not {data!r}")
    known = {item.name: item for item in dataclasses.fields(kind) if item.init}
    for key in data:
        if key not in known:
            raise SpaceError(f"unknown key {key!r}, known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name not in data:
            if item.default is dataclasses.MISSING:
                raise SpaceError(f"key {name!r} is missing")
            continue
        content = data[name]
        if name.endswith("activation"):
            content = _activation(name, content)
        values[name] = tuple(content) if isinstance(content, list) else content
    return values


def _activation(name: str, content: object) -> Activation:
    try:
        return Activation(str(content))
    except ValueError:
        allowed = ", ".join(member.value for member in Activation)
        raise SpaceError(f"{name} = {content!r} is unknown, allowed: {allowed}") from None


def _exact_keys(data: object, kind: type[Any], what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ArchitectureError(f"{what} must be a JSON object, not {type(data).__name__}")
    known = [item.name for item in dataclasses.fields(kind)]
    for key in data:
        if key not in known:
            raise ArchitectureError(f"{what}: unknown key {key!r}, known: {', '.join(known)}")
    for key in known:
        if key not in data:
            raise ArchitectureError(f"{what}: key {key!r} is missing")
    return dict(data)


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArchitectureError(f"{name} must be a positive integer, not {value!r}")


def _check_number(name: str, value: object, limit: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise SpaceError(f"{name} must be an integer from 1 to {limit}, not {value!r}")


def _check_options(name: str, options: object, limit: int) -> None:
    if not isinstance(options, tuple) or not options:
        raise SpaceError(f"{name} must be a list of at least one integer, not {options!r}")
    for option in options:
        _check_number(f"every entry of {name}", option, limit)
    if list(options) != sorted(set(options)):
        raise SpaceError(f"{name} must ascend without repetition, not {list(options)}")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise SpaceError(f"name must be a text of at least one character, not {name!r}")


def _check_odd(name: str, kernels: tuple[int, ...]) -> None:
    for kernel in kernels:
        if kernel % 2 == 0:
            raise SpaceError(f"{name} must be odd, not {kernel}")


def _check_activation(name: str, value: object) -> None:
    if not isinstance(value, Activation):
        raise SpaceError(f"{name} must be an activation, not {value!r}")
