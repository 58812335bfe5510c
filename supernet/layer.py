"""Layers: the fused operators that a network consists of."""

from dataclasses import dataclass

from bignas.device_db.workload import Activation, Operator

__all__ = ["Layer"]


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
