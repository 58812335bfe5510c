"""Stages of blocks: what may vary in them, and the layers of their blocks.

Source of the inverted residual block and of the elastic dimensions: Yu et al., "BigNAS: Scaling Up
Neural Architecture Search with Big Single-Stage Models", ECCV 2020; of its fused form: Tan and Le,
"EfficientNetV2: Smaller Models and Faster Training", ICML 2021, section 3.2.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from bignas.device_db.errors import SpaceError
from bignas.device_db.workload import Activation, Operator
from bignas.supernet.architecture import StageChoice
from bignas.supernet.layer import Layer
from bignas.supernet.space_fields import (
    LIMITS,
    check_activation,
    check_number,
    check_odd,
    check_options,
    to_plain,
)

__all__ = ["Block", "StageSpace", "block_layers", "squeeze_channels"]

_SQUEEZE_DIVISOR = 4  # squeeze-excite width = block input / 4, as in EfficientNet
_CHANNEL_STEP = 8


class Block(StrEnum):
    """What a block consists of, before the squeeze-excite and the projection."""

    MBCONV = "mbconv"  # a pointwise expansion and a depthwise convolution
    FUSED_MBCONV = "fused_mbconv"  # one dense convolution, which expands


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
    block: Block = Block.MBCONV

    def __post_init__(self) -> None:
        check_options("channels", self.channels, LIMITS["channels"])
        check_options("depths", self.depths, LIMITS["depths"])
        check_options("kernels", self.kernels, LIMITS["kernels"])
        check_options("expands", self.expands, LIMITS["expands"])
        check_number("stride", self.stride, LIMITS["stride"])
        check_odd("kernels", self.kernels)
        check_activation("activation", self.activation)
        if not isinstance(self.squeeze_excite, bool):
            raise SpaceError(f"squeeze_excite must be true or false, not {self.squeeze_excite!r}")
        if not isinstance(self.block, Block):
            raise SpaceError(f"block must be a kind of block, not {self.block!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `SearchSpace.from_dict` reads it back."""
        return to_plain(self)


def block_layers(
    prefix: str,
    stage: StageSpace,
    choice: StageChoice,
    in_channels: int,
    size: int,
    stride: int,
    shortcut: bool,
) -> list[Layer]:
    """One inverted residual block: expand, depthwise, squeeze-excite, project.

    Fused, expansion and depthwise convolution are one dense convolution, called expand.
    """
    hidden = in_channels * choice.expand
    out_size = -(-size // stride)
    activation = stage.activation
    window = partial(
        Layer,
        kernel=choice.kernel,
        stride=stride,
        padding=choice.kernel // 2,
        activation=activation,
    )
    expand, depthwise = f"{prefix}.expand", f"{prefix}.depthwise"
    layers = []
    if stage.block is Block.FUSED_MBCONV:
        layers.append(window(expand, Operator.CONV, size, size, in_channels, hidden))
    else:
        if choice.expand > 1:
            expansion = (Operator.POINTWISE, size, size, in_channels, hidden)
            layers.append(Layer(expand, *expansion, activation=activation))
        layers.append(window(depthwise, Operator.DEPTHWISE, size, size, hidden, hidden))
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
