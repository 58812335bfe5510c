"""A workload: one fused kernel that a network is built from, a frozen value that validates itself.

It has one canonical text (`Workload.key`), by which it is looked up across processes and machines.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self

from bignas.device_db.checks import exact_keys, member_of, require_integer
from bignas.device_db.errors import ModelError

__all__ = ["BYTES_PER_VALUE", "Activation", "Layout", "Operator", "Workload"]

BYTES_PER_VALUE = 4  # of float32, in which networks compute


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
            require_integer(name, getattr(self, name), 1, ModelError)
        require_integer("padding", self.padding, 0, ModelError)
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
        require_integer("hidden_channels", self.hidden_channels, 0, ModelError)
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
        values = exact_keys(cls, data, ModelError)
        if not isinstance(values["residual"], bool):
            raise ModelError(f"residual must be true or false, got {values['residual']!r}")
        values["operator"] = member_of(Operator, "operator", values["operator"], ModelError)
        values["activation"] = member_of(Activation, "activation", values["activation"], ModelError)
        values["input_layout"] = member_of(
            Layout, "input_layout", values["input_layout"], ModelError
        )
        return cls(**values)
