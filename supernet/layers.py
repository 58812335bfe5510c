"""Elastic layers: the biggest weights, of which each child uses a slice.

Decisions
- A unit is told which `Layer` it is to be and keeps no state of it. Smaller children use the first
  channels (`weight[:out, :in]`) and the centre of the kernel; nothing is masked.
- There are no running statistics. How a layer is computed is passed in as an `Execution`: with the
  statistics of the batch in training, with given ones after calibration.
- Convolution, batch norm, residual sum and activation are one unit, because they are one kernel in
  the binary.

Source: Yu et al., "BigNAS", ECCV 2020; slicing as in Yu et al., "Slimmable Neural Networks",
ICLR 2019.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from bignas.device_db.errors import ArchitectureError
from bignas.device_db.workload import Activation, Operator
from bignas.supernet.layer import Layer

__all__ = [
    "EPSILON",
    "BatchExecution",
    "BatchNormStatistics",
    "ElasticLinear",
    "ElasticUnit",
    "Execution",
    "FixedExecution",
    "activate",
]

EPSILON = 1e-5  # of every batch norm, in the supernet and in its children

BatchNormStatistics = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and variance, each [channels], by the name of the layer they normalise."""

_FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        Activation.RELU: functional.relu,
        Activation.RELU6: functional.relu6,
        Activation.HARD_SWISH: functional.hardswish,
        Activation.SWISH: functional.silu,
        Activation.SIGMOID: torch.sigmoid,
        Activation.HARD_SIGMOID: functional.hardsigmoid,
    }
)


class Execution(ABC):
    """How the layers of a network are computed."""

    def convolve(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x [N, in, H, W] as `layer` with weight [out, in or 1, k, k]."""
        groups = layer.in_channels if layer.operator is Operator.DEPTHWISE else 1
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding, groups=groups)

    def finish(
        self, layer: Layer, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Normalise y [N, C, H, W], scale and shift it [C], add the residual, activate."""
        return activate(layer, self.normalize(layer.name, y, scale, shift), residual)

    def chain(
        self, units: Sequence[tuple["ElasticUnit", Layer]], x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Apply units, each as a layer, one after the other; the last one adds the residual."""
        *first, last = units
        for unit, layer in first:
            x = unit(x, layer, self)
        chained: Tensor = last[0](x, last[1], self, residual)
        return chained

    @abstractmethod
    def normalize(self, name: str, y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The batch norm of layer `name`."""


class BatchExecution(Execution):
    """Batch norms use the statistics of the batch, as in training."""

    def takes_halves(self, layer: Layer) -> bool:
        """Whether it convolves bfloat16 images with float32 weights; torch does not."""
        del layer
        return False

    def normalize(self, name: str, y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise by the moments of y."""
        del name
        return functional.batch_norm(y, None, None, scale, shift, training=True, eps=EPSILON)


class FixedExecution(Execution):
    """Batch norms use given statistics.

    It raises ArchitectureError when they were calibrated for another architecture.
    """

    def __init__(self, statistics: BatchNormStatistics) -> None:
        self._statistics = statistics

    def normalize(self, name: str, y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise by the given mean and variance."""
        mean, variance = self.moments(name, y.shape[1])
        return functional.batch_norm(y, mean, variance, scale, shift, training=False, eps=EPSILON)

    def moments(self, name: str, channels: int) -> tuple[Tensor, Tensor]:
        """The given mean and variance, each [channels], of layer `name`."""
        if name not in self._statistics or len(self._statistics[name][0]) != channels:
            raise ArchitectureError(f"the statistics of {name} are those of another architecture")
        return self._statistics[name]


def activate(layer: Layer, y: Tensor, residual: Tensor | None) -> Tensor:
    """The activation of `layer` of y plus the residual."""
    if residual is not None:
        y = y + residual
    return y if layer.activation is Activation.NONE else _FUNCTIONS[layer.activation](y)


class ElasticUnit(nn.Module):
    """Convolution with batch norm (or bias), residual sum and activation, at any smaller size."""

    def __init__(
        self, out_channels: int, in_channels: int, kernel: int, *, depthwise: bool, normalized: bool
    ) -> None:
        super().__init__()
        fan_in = 1 if depthwise else in_channels
        self.weight = nn.Parameter(torch.zeros(out_channels, fan_in, kernel, kernel))
        self.scale = nn.Parameter(torch.ones(out_channels)) if normalized else None
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def initialise(self, generator: torch.Generator, *, zero_scale: bool) -> None:
        """He initialisation by fan-out; a zero scale silences the unit until it has learnt."""
        out_channels, fan_in, kernel, _ = self.weight.shape
        fan_out = kernel * kernel * (1 if fan_in == 1 else out_channels)
        with torch.no_grad():
            self.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
            if self.scale is not None:
                self.scale.fill_(0.0 if zero_scale else 1.0)
            self.bias.zero_()

    def kernel_for(self, layer: Layer) -> Tensor:
        """The weights that `layer` uses, [out, in, kernel, kernel] (in = 1 when depthwise)."""
        margin = (self.weight.shape[-1] - layer.kernel) // 2
        inner = slice(margin, margin + layer.kernel)
        fan_in = 1 if layer.operator is Operator.DEPTHWISE else layer.in_channels
        return self.weight[: layer.out_channels, :fan_in, inner, inner]

    def affine(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Scale and shift, each [out], of the batch norm of `layer`, which has one."""
        assert self.scale is not None
        return self.scale[: layer.out_channels], self.bias[: layer.out_channels]

    def slices(self, layer: Layer) -> dict[str, Tensor]:
        """The parameters that `layer` uses, by their names in the child's `ConvUnit`."""
        weight = self.kernel_for(layer)
        if self.scale is None:
            return {"conv.weight": weight, "conv.bias": self.bias[: layer.out_channels]}
        scale, shift = self.affine(layer)
        return {"conv.weight": weight, "norm.weight": scale, "norm.bias": shift}

    def forward(
        self, x: Tensor, layer: Layer, execution: Execution, residual: Tensor | None = None
    ) -> Tensor:
        """Apply the unit as `layer` to x [N, in, H, W]."""
        weight = self.kernel_for(layer)
        if self.scale is None:
            y = execution.convolve(layer, x, weight, self.bias[: layer.out_channels])
            return activate(layer, y, residual)
        y = execution.convolve(layer, x, weight, None)
        return execution.finish(layer, y, *self.affine(layer), residual)


class ElasticLinear(nn.Module):
    """The classifier; smaller children use the first inputs."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, in_channels))
        self.bias = nn.Parameter(torch.zeros(classes))

    def initialise(self, generator: torch.Generator) -> None:
        """Small random weights, zero bias."""
        with torch.no_grad():
            self.weight.normal_(0.0, 0.01, generator=generator)
            self.bias.zero_()

    def slices(self, layer: Layer) -> dict[str, Tensor]:
        """The parameters that `layer` uses, by their names in the child's classifier."""
        return {"weight": self.weight[:, : layer.in_channels], "bias": self.bias}

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of features x [N, in]."""
        return functional.linear(x, self.weight[:, : x.shape[1]], self.bias)
