"""The records of the house: frozen values that validate themselves.

- `Workload`: one fused kernel that a network is built from.
- `Target` and `Device`: what code is generated for, and the machine that runs it; `Remote`: how a
  device is reached that is another machine.
- `Measurement`: raw samples of one kernel or one network on one device, with `Provenance` (which
  code was measured) and `Environment` (what the machine was doing). A failed measurement is a
  record too.

Values have one canonical text each (`Workload.key`, `Target.digest`), so they can be compared and
looked up across processes and machines. `to_dict()` gives plain JSON values, `from_dict()` is its
inverse.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Self, TypeVar

from bignas.device_db.errors import BignasError, MeasurementError, ModelError, TargetError

__all__ = [
    "BYTES_PER_VALUE",
    "Activation",
    "Device",
    "Environment",
    "Layout",
    "MachineArchitecture",
    "Measurement",
    "MeasurementKind",
    "Operator",
    "Provenance",
    "Remote",
    "Subject",
    "Target",
    "Workload",
]

BYTES_PER_VALUE = 4  # of float32, in which networks compute

_Enum = TypeVar("_Enum", bound=StrEnum)


class Operator(StrEnum):
    """The operators that kernels exist for."""

    CONV = "conv"  # dense k x k convolution
    POINTWISE = "pointwise"  # 1 x 1 convolution; a fully connected layer is one on a 1 x 1 image
    DEPTHWISE = "depthwise"
    MAX_POOL = "max_pool"
    AVERAGE_POOL = "average_pool"  # padded zeros count
    GLOBAL_POOL = "global_pool"  # mean over height and width
    SCALE = "scale"  # multiply each channel by a factor computed at run time (squeeze-excite)
    # expand -> depthwise -> project as one kernel; without expand where hidden = in channels
    INVERTED_BOTTLENECK = "inverted_bottleneck"


class Activation(StrEnum):
    """Functions applied to the result of a kernel, element by element."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    HARD_SWISH = "hard_swish"
    SWISH = "swish"
    SIGMOID = "sigmoid"
    HARD_SIGMOID = "hard_sigmoid"


class Layout(StrEnum):
    """Order of the dimensions in memory."""

    NHWC = "nhwc"
    NCHW = "nchw"


class MachineArchitecture(StrEnum):
    """Processor families that code can be generated for."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"
    ARM = "arm"
    RISCV64 = "riscv64"


class MeasurementKind(StrEnum):
    """Where a latency comes from. Only `MEASURED` is evidence."""

    MEASURED = "measured"
    EMULATED = "emulated"
    PREDICTED = "predicted"


class Subject(StrEnum):
    """What was measured."""

    KERNEL = "kernel"
    NETWORK = "network"


_WEIGHTED = (
    Operator.CONV,
    Operator.POINTWISE,
    Operator.DEPTHWISE,
    Operator.INVERTED_BOTTLENECK,
)
_WINDOW_POOLS = (Operator.MAX_POOL, Operator.AVERAGE_POOL)
_SAME_CHANNELS = (Operator.DEPTHWISE, *_WINDOW_POOLS, Operator.GLOBAL_POOL, Operator.SCALE)
_WITHOUT_WINDOW = (Operator.GLOBAL_POOL, Operator.SCALE)

_KEY = re.compile(
    r"(?P<operator>[a-z_]+)-(?P<height>\d+)x(?P<width>\d+)x(?P<inner>\d+)(?:to(?P<outer>\d+))?"
    r"(?:h(?P<hidden>\d+))?"
    r"-k(?P<kernel>\d+)s(?P<stride>\d+)p(?P<padding>\d+)-(?P<activation>[a-z0-9_]+)"
    r"(?P<residual>-residual)?(?P<nchw>-nchw)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Workload:
    """One fused kernel: operator, shapes and epilogue, `y = activation(op(x) + bias + residual)`.

    Batch size is 1 and values are float32. `height` and `width` are those of the input; `padding`
    is added on all four sides. Pooling and scaling have no bias or residual, global pooling and
    scaling no window.

    An inverted bottleneck (Sandler et al., "MobileNetV2", CVPR 2018, section 3.3) computes
    `project(activation(depthwise(activation(expand(x)))))`, each with its bias; window, stride and
    padding are those of the depthwise convolution over `hidden_channels`, and its residual is its
    own input. Other operators have no hidden channels.

    Raises:
        ModelError: a size that is not positive, or a combination no kernel exists for.
    """

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
    input_layout: Layout = Layout.NHWC
    hidden_channels: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width", "in_channels", "out_channels", "kernel", "stride"):
            _require_integer(name, getattr(self, name), 1, ModelError)
        _require_integer("padding", self.padding, 0, ModelError)
        operator = self.operator
        if operator in _SAME_CHANNELS and self.in_channels != self.out_channels:
            raise ModelError(
                f"{operator} needs as many output as input channels,"
                f" got {self.in_channels} and {self.out_channels}"
            )
        if operator is Operator.POINTWISE and (self.kernel, self.padding) != (1, 0):
            raise ModelError(
                f"pointwise needs kernel 1 and padding 0, got {self.kernel} and {self.padding}"
            )
        if operator in _WITHOUT_WINDOW and (
            (self.kernel, self.stride, self.padding) != (1, 1, 0) or self.residual
        ):
            raise ModelError(f"{operator} has no kernel, stride, padding or residual")
        if operator in _WINDOW_POOLS and self.residual:
            raise ModelError(f"{operator} has no residual")
        self._check_hidden()
        if self.padding >= self.kernel > 1 or (self.kernel == 1 and self.padding):
            raise ModelError(f"padding {self.padding} is too large for kernel {self.kernel}")
        if min(self.height, self.width) + 2 * self.padding < self.kernel:
            raise ModelError(
                f"kernel {self.kernel} is larger than the padded {self.height}x{self.width} input"
            )

    def _check_hidden(self) -> None:
        _require_integer("hidden_channels", self.hidden_channels, 0, ModelError)
        fused = self.operator is Operator.INVERTED_BOTTLENECK
        if fused != (self.hidden_channels > 0):
            raise ModelError(
                f"{self.operator} {'needs' if fused else 'has no'} hidden channels,"
                f" got {self.hidden_channels}"
            )
        fits = self.stride == 1 and self.in_channels == self.out_channels
        if fused and self.residual and not fits:
            raise ModelError("an inverted bottleneck with a residual keeps size and channels")

    @property
    def out_height(self) -> int:
        """Height of the output in pixels."""
        return self._out_size(self.height)

    @property
    def out_width(self) -> int:
        """Width of the output in pixels."""
        return self._out_size(self.width)

    def _out_size(self, size: int) -> int:
        if self.operator is Operator.GLOBAL_POOL:
            return 1
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates; pooling and scaling count none, as in published figures."""
        if self.operator is Operator.INVERTED_BOTTLENECK:
            expanded = self.height * self.width * self._expand_count
            rest = self.weight_count - self._expand_count
            return expanded + self.out_height * self.out_width * rest
        return self.out_height * self.out_width * self.weight_count

    @property
    def _expand_count(self) -> int:
        return self.in_channels * self.hidden_channels if self.expands else 0

    @property
    def expands(self) -> bool:
        """Whether an inverted bottleneck starts with a pointwise expansion."""
        return self.hidden_channels not in (0, self.in_channels)

    @property
    def weight_count(self) -> int:
        """Number of weights, without biases."""
        if self.operator not in _WEIGHTED:
            return 0
        if self.operator is Operator.INVERTED_BOTTLENECK:
            window = self.kernel * self.kernel
            return self._expand_count + self.hidden_channels * (window + self.out_channels)
        inner = 1 if self.operator is Operator.DEPTHWISE else self.in_channels
        return inner * self.out_channels * self.kernel * self.kernel

    @property
    def bias_count(self) -> int:
        """Number of biases: one for each output channel, and for each hidden one of its layers."""
        return self.out_channels + self.hidden_channels * (1 + self.expands)

    @property
    def scratch_count(self) -> int:
        """Values of scratch memory that a thread needs: rows of an inverted bottleneck's inside."""
        rows = self.kernel * self.width * self.expands + self.out_width
        return rows * self.hidden_channels

    @property
    def key(self) -> str:
        """Canonical text, unique to the workload; `from_key` is its inverse.

        For example `depthwise-32x32x64-k3s1p1-relu` or `pointwise-8x8x96to24-k1s1p0-none-residual`.
        """
        outer = "" if self.in_channels == self.out_channels else f"to{self.out_channels}"
        hidden = f"h{self.hidden_channels}" if self.hidden_channels else ""
        return (
            f"{self.operator}-{self.height}x{self.width}x{self.in_channels}{outer}{hidden}"
            f"-k{self.kernel}s{self.stride}p{self.padding}-{self.activation}"
            f"{'-residual' if self.residual else ''}"
            f"{'-nchw' if self.input_layout is Layout.NCHW else ''}"
        )

    @classmethod
    def from_key(cls, text: str) -> Self:
        """Return the workload whose `key` is `text`.

        Raises:
            ModelError: the text is not the key of any workload.
        """
        match = _KEY.fullmatch(text)
        if match is None:
            raise ModelError(f"malformed workload key {text!r}")
        try:
            workload = cls(
                operator=Operator(match["operator"]),
                height=int(match["height"]),
                width=int(match["width"]),
                in_channels=int(match["inner"]),
                out_channels=int(match["outer"] or match["inner"]),
                kernel=int(match["kernel"]),
                stride=int(match["stride"]),
                padding=int(match["padding"]),
                activation=Activation(match["activation"]),
                residual=match["residual"] is not None,
                input_layout=Layout.NCHW if match["nchw"] else Layout.NHWC,
                hidden_channels=int(match["hidden"] or 0),
            )
        except ValueError as error:
            raise ModelError(f"malformed workload key {text!r}: {error}") from error
        if workload.key != text:
            raise ModelError(f"workload key {text!r} is not canonical, expected {workload.key!r}")
        return workload

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the workload that `to_dict` was called on.

        Raises:
            ModelError: a missing or unknown key, or a value of the wrong type.
        """
        values = _exact_keys(cls, data, ModelError)
        if not isinstance(values["residual"], bool):
            raise ModelError(f"residual must be true or false, got {values['residual']!r}")
        values["operator"] = _member(Operator, "operator", values["operator"], ModelError)
        values["activation"] = _member(Activation, "activation", values["activation"], ModelError)
        values["input_layout"] = _member(Layout, "input_layout", values["input_layout"], ModelError)
        return cls(**values)


# Vector registers: (lanes of float32, number of registers). On x86-64 the CPU name gives the level,
# features raise or lower it.
_SSE, _AVX2, _AVX512 = (4, 16), (8, 16), (16, 32)
_X86_CPUS = {
    **dict.fromkeys(("x86-64-v3", "haswell", "broadwell", "skylake", "alderlake"), _AVX2),
    **dict.fromkeys(("znver1", "znver2", "znver3"), _AVX2),
    **dict.fromkeys(("x86-64-v4", "skylake-avx512", "cascadelake", "cooperlake"), _AVX512),
    **dict.fromkeys(("icelake-client", "icelake-server", "sapphirerapids"), _AVX512),
    **dict.fromkeys(("emeraldrapids", "graniterapids", "znver4", "znver5"), _AVX512),
}
_ARCHITECTURE_ALIASES = {
    "amd64": MachineArchitecture.X86_64,
    "arm64": MachineArchitecture.AARCH64,
    "armv7l": MachineArchitecture.ARM,
    "armv7a": MachineArchitecture.ARM,
    "armv7": MachineArchitecture.ARM,
    "armv8l": MachineArchitecture.ARM,
}
_TRIPLE = re.compile(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+)+")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_FEATURE = re.compile(r"[+-][A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Target:
    """What code is generated for: LLVM triple, processor name and features such as `+avx512f`.

    Features are kept sorted, so two targets that differ in their order only are equal.

    Raises:
        TargetError: malformed text, contradicting features or an unsupported architecture.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _TRIPLE.fullmatch(self.triple):
            raise TargetError(
                f"malformed target triple {self.triple!r}, expected one like x86_64-linux-gnu"
            )
        if not _CPU.fullmatch(self.cpu):
            raise TargetError(f"malformed processor name {self.cpu!r}")
        for feature in self.features:
            if not _FEATURE.fullmatch(feature):
                raise TargetError(
                    f"malformed feature {feature!r}, expected one like +avx2 or -avx512f"
                )
        features = tuple(sorted(set(self.features)))
        if len({feature[1:] for feature in features}) != len(features):
            raise TargetError(f"features contradict each other: {', '.join(features)}")
        object.__setattr__(self, "features", features)
        _ = self.architecture

    @property
    def architecture(self) -> MachineArchitecture:
        """Processor family, from the first part of the triple."""
        name = self.triple.split("-", 1)[0].lower()
        if name in _ARCHITECTURE_ALIASES:
            return _ARCHITECTURE_ALIASES[name]
        return _member(MachineArchitecture, "architecture", name, TargetError)

    @property
    def vector_lanes(self) -> int:
        """Float32 values that one vector register holds; 1 without vector instructions."""
        return self._vectors()[0]

    @property
    def vector_registers(self) -> int:
        """Number of vector registers that a kernel may use."""
        return self._vectors()[1]

    def _vectors(self) -> tuple[int, int]:
        match self.architecture:
            case MachineArchitecture.X86_64:
                return self._x86_vectors()
            case MachineArchitecture.AARCH64:
                return (4, 32)
            case MachineArchitecture.ARM:
                return (1, 16) if "-neon" in self.features else (4, 16)
            case MachineArchitecture.RISCV64:
                return (4, 32) if "+v" in self.features else (1, 32)

    def _x86_vectors(self) -> tuple[int, int]:
        level = _X86_CPUS.get(self.cpu, _SSE)
        if "+avx512f" in self.features:
            level = _AVX512
        elif "+avx2" in self.features:
            level = max(level, _AVX2)
        if "-avx512f" in self.features:
            level = min(level, _AVX2)
        if "-avx2" in self.features or "-avx" in self.features:
            level = _SSE
        return level

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits, the same on every machine for equal targets."""
        return _digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {"triple": self.triple, "cpu": self.cpu, "features": list(self.features)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the target that `to_dict` was called on.

        Raises:
            TargetError: a missing or unknown key, or a value of the wrong type.
        """
        values = _exact_keys(cls, data, TargetError)
        return cls(
            triple=_text("triple", values["triple"], TargetError),
            cpu=_text("cpu", values["cpu"], TargetError),
            features=_texts("features", values["features"], TargetError),
        )

    def to_tvm(self) -> dict[str, Any]:
        """Return the dictionary that `tvm.target.Target` takes."""
        target: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.features:
            target["mattr"] = list(self.features)
        return target


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,253}")
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a device is measured that is another machine: servers of TVM's RPC, found by a tracker.

    `host` and `port` are the tracker's, `key` is what the servers of the device registered with:
    machines with the same key count as the same device. `own_cache_bytes` is the size of one core's
    own (second-level) cache there.

    Raises:
        TargetError: a malformed host, port or key, or a size that is not positive.
    """

    host: str
    port: int
    key: str
    own_cache_bytes: int

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise TargetError(f"malformed host {self.host!r} of an RPC tracker")
        _require_integer("the port of an RPC tracker", self.port, 1, TargetError)
        if self.port > _LAST_PORT:
            raise TargetError(f"the port of an RPC tracker is at most {_LAST_PORT}: {self.port}")
        if not _NAME.fullmatch(self.key):
            raise TargetError(
                f"malformed RPC key {self.key!r}: use letters, digits, dots, dashes and"
                " underscores, at most 100"
            )
        _require_integer("own_cache_bytes", self.own_cache_bytes, 1, TargetError)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the access that `to_dict` was called on.

        Raises:
            TargetError: a missing or unknown key, or a value of the wrong type.
        """
        values = _exact_keys(cls, data, TargetError)
        for name in ("host", "key"):
            _text(name, values[name], TargetError)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that binaries run on: its target and the facts that latencies depend on.

    `threads` is the number of threads a binary uses on it; another number is another device. The
    name is also used in file names, so it is limited to letters, digits, dots, dashes, underscores.
    `remote` tells how a machine other than the one at hand is reached; how it is, does not make it
    another device.

    Raises:
        TargetError: a malformed name, or a number that is not positive.
    """

    name: str
    target: Target
    threads: int
    cpu_model: str
    cores: int
    memory_bytes: int
    instruction_sets: tuple[str, ...] = ()
    remote: Remote | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TargetError(
                f"malformed device name {self.name!r}: use letters, digits, dots, dashes and"
                " underscores, at most 100"
            )
        for name in ("threads", "cores", "memory_bytes"):
            _require_integer(name, getattr(self, name), 1, TargetError)

    @property
    def machine_digest(self) -> str:
        """Sixteen hexadecimal digits, equal for devices whose latencies may be compared."""
        return _digest(
            {
                "target": self.target.to_dict(),
                "threads": self.threads,
                "cpu_model": self.cpu_model,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {
            "name": self.name,
            "target": self.target.to_dict(),
            "threads": self.threads,
            "cpu_model": self.cpu_model,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "instruction_sets": list(self.instruction_sets),
            "remote": None if self.remote is None else self.remote.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the device that `to_dict` was called on.

        Raises:
            TargetError: a missing or unknown key, or a value of the wrong type.
        """
        values = _exact_keys(cls, data, TargetError)
        if not isinstance(values["target"], Mapping):
            raise TargetError(f"target must be an object, got {values['target']!r}")
        values["target"] = Target.from_dict(values["target"])
        values["name"] = _text("name", values["name"], TargetError)
        values["cpu_model"] = _text("cpu_model", values["cpu_model"], TargetError)
        values["instruction_sets"] = _texts(
            "instruction_sets", values["instruction_sets"], TargetError
        )
        if values["remote"] is not None:
            values["remote"] = Remote.from_dict(values["remote"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which code was measured, and by what.

    `code_hash` is the hash of the measured machine code or of the kernel generators: when it no
    longer matches the code that would ship, the measurement is stale.
    """

    compiler: str
    runtime: str
    code_hash: str
    bignas_version: str
    host: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the provenance that `to_dict` was called on.

        Raises:
            MeasurementError: a missing or unknown key, or a value of the wrong type.
        """
        values = _exact_keys(cls, data, MeasurementError)
        return cls(**{key: _text(key, value, MeasurementError) for key, value in values.items()})


@dataclass(frozen=True, slots=True)
class Environment:
    """What the machine was doing while the samples were taken.

    `steal_fraction` is the share (0 to 1) of time that a hypervisor gave to others,
    `context_switches` counts those of the measuring process, `affinity` lists its processors.

    Raises:
        MeasurementError: a value outside its range.
    """

    load_average: float
    steal_fraction: float
    frequency_mhz: float | None
    context_switches: int
    affinity: tuple[int, ...]
    governor: str | None

    def __post_init__(self) -> None:
        if not 0.0 <= self.steal_fraction <= 1.0:
            raise MeasurementError(f"steal_fraction must be 0 to 1, got {self.steal_fraction}")
        if not 0.0 <= self.load_average < math.inf:
            raise MeasurementError(f"load_average must not be negative, got {self.load_average}")
        if self.frequency_mhz is not None and not 0.0 < self.frequency_mhz < math.inf:
            raise MeasurementError(f"frequency_mhz must be positive, got {self.frequency_mhz}")
        if self.context_switches < 0:
            raise MeasurementError(
                f"context_switches must not be negative, got {self.context_switches}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {
            "load_average": self.load_average,
            "steal_fraction": self.steal_fraction,
            "frequency_mhz": self.frequency_mhz,
            "context_switches": self.context_switches,
            "affinity": list(self.affinity),
            "governor": self.governor,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the environment that `to_dict` was called on.

        Raises:
            MeasurementError: a missing or unknown key, or a value of the wrong type.
        """
        values = _exact_keys(cls, data, MeasurementError)
        affinity = values["affinity"]
        if not isinstance(affinity, Sequence) or isinstance(affinity, str):
            raise MeasurementError(f"affinity must be a list of numbers, got {affinity!r}")
        for number in (*affinity, values["context_switches"]):
            _require_integer("a processor or a count", number, 0, MeasurementError)
        frequency_mhz = values["frequency_mhz"]
        return cls(
            load_average=_number("load_average", values["load_average"], MeasurementError),
            steal_fraction=_number("steal_fraction", values["steal_fraction"], MeasurementError),
            frequency_mhz=None
            if frequency_mhz is None
            else _number("frequency_mhz", frequency_mhz, MeasurementError),
            context_switches=values["context_switches"],
            affinity=tuple(affinity),
            governor=_text_or_none("governor", values["governor"], MeasurementError),
        )


@dataclass(frozen=True, slots=True)
class Measurement:
    """Raw latency samples of one kernel or network on one device, or the error that came instead.

    A kernel has a `workload` and the `schedule` (canonical JSON text) it was built with; a network
    has the name of its `space` and its `architecture` (canonical JSON text). `session` groups what
    was measured together. `created_at` is in UTC.

    Raises:
        MeasurementError: fields that do not belong together, or samples that are no latencies.
    """

    device: str
    subject: Subject
    workload: Workload | None
    schedule: str | None
    space: str | None
    architecture: str | None
    samples_ns: tuple[float, ...]
    error: str | None
    kind: MeasurementKind
    provenance: Provenance
    environment: Environment
    created_at: datetime
    session: str

    def __post_init__(self) -> None:
        if self.subject is Subject.KERNEL:
            if self.workload is None or self.space is not None or self.architecture is not None:
                raise MeasurementError("a kernel measurement has a workload and no architecture")
        elif self.workload is not None or self.space is None or self.architecture is None:
            raise MeasurementError("a network measurement has a space and an architecture only")
        if (self.error is None) != bool(self.samples_ns):
            raise MeasurementError("a measurement has either samples or an error")
        if self.samples_ns and not (
            min(self.samples_ns) > 0.0 and math.isfinite(sum(self.samples_ns))
        ):
            raise MeasurementError("latency samples must be positive and finite")
        if self.created_at.utcoffset() != timedelta(0):
            raise MeasurementError("created_at must be in UTC")

    @property
    def ok(self) -> bool:
        """Whether the measurement succeeded."""
        return self.error is None

    @property
    def p50_ns(self) -> float:
        """Median in nanoseconds."""
        return self._quantile(0.5)

    @property
    def p90_ns(self) -> float:
        """Ninetieth percentile in nanoseconds: what is promised to users."""
        return self._quantile(0.9)

    def _quantile(self, share: float) -> float:
        """Interpolate linearly between the two nearest samples, as numpy does by default."""
        if self.error is not None:
            raise MeasurementError(f"a failed measurement has no latency: {self.error}")
        ordered = sorted(self.samples_ns)
        position = share * (len(ordered) - 1)
        index = int(position)
        upper = ordered[min(index + 1, len(ordered) - 1)]
        return ordered[index] + (position - index) * (upper - ordered[index])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {
            "device": self.device,
            "subject": self.subject,
            "workload": None if self.workload is None else self.workload.key,
            "schedule": self.schedule,
            "space": self.space,
            "architecture": self.architecture,
            "samples_ns": list(self.samples_ns),
            "error": self.error,
            "kind": self.kind,
            "provenance": self.provenance.to_dict(),
            "environment": self.environment.to_dict(),
            "created_at": self.created_at.astimezone(UTC).isoformat(),
            "session": self.session,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the measurement that `to_dict` was called on.

        Raises:
            MeasurementError: a missing or unknown key, or a value of the wrong type.
        """
        values = _exact_keys(cls, data, MeasurementError)
        values["subject"] = _member(Subject, "subject", values["subject"], MeasurementError)
        values["kind"] = _member(MeasurementKind, "kind", values["kind"], MeasurementError)
        for name in ("device", "session"):
            _text(name, values[name], MeasurementError)
        for name in ("workload", "schedule", "space", "architecture", "error"):
            _text_or_none(name, values[name], MeasurementError)
        try:
            key = values["workload"]
            values["workload"] = None if key is None else Workload.from_key(key)
            values["samples_ns"] = tuple(
                _number("a sample", sample, MeasurementError) for sample in values["samples_ns"]
            )
            values["provenance"] = Provenance.from_dict(values["provenance"])
            values["environment"] = Environment.from_dict(values["environment"])
            values["created_at"] = datetime.fromisoformat(values["created_at"])
        except (TypeError, ValueError, AttributeError, ModelError) as error:
            raise MeasurementError(f"malformed measurement: {error}") from error
        return cls(**values)


def _require_integer(name: str, value: object, least: int, error: type[BignasError]) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise error(f"{name} must be a whole number of at least {least}, got {value!r}")


def _member(kind: type[_Enum], name: str, value: object, error: type[BignasError]) -> _Enum:
    try:
        return kind(str(value))
    except ValueError as cause:
        choices = ", ".join(kind)
        raise error(f"unsupported {name} {value!r}, expected one of: {choices}") from cause


def _text(name: str, value: object, error: type[BignasError]) -> str:
    if not isinstance(value, str):
        raise error(f"{name} must be text, got {value!r}")
    return value


def _text_or_none(name: str, value: object, error: type[BignasError]) -> str | None:
    return None if value is None else _text(name, value, error)


def _number(name: str, value: object, error: type[BignasError]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise error(f"{name} must be a number, got {value!r}")
    return float(value)


def _texts(name: str, value: object, error: type[BignasError]) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise error(f"{name} must be a list of texts, got {value!r}")
    return tuple(_text(name, item, error) for item in value)


def _exact_keys(
    cls: type[Any], data: Mapping[str, Any], error: type[BignasError]
) -> dict[str, Any]:
    """Return a copy of `data` after checking that its keys are exactly the fields of `cls`."""
    if not isinstance(data, Mapping):
        raise error(f"a {cls.__name__.lower()} must be an object, got {data!r}")
    names = {field.name for field in fields(cls)}
    if missing := sorted(names - data.keys()):
        raise error(f"a {cls.__name__.lower()} lacks {', '.join(missing)}")
    if unknown := sorted(str(key) for key in data.keys() - names):
        raise error(f"a {cls.__name__.lower()} has unknown {', '.join(unknown)}")
    return dict(data)


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
