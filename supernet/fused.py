"""Training with fused kernels for the CPU, where there is a C compiler.

`FusedExecution` computes what the library of `fused_kernels.py` covers, a chain of convolutions as
in an inverted residual block as one function of autograd. Whatever it does not cover goes the way
of `BatchExecution`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bignas.device_db.workload import Operator
from bignas.supernet.fused_kernels import (
    KINDS,
    FusedKernels,
    Linked,
    Normalized,
    is_chain,
    is_covered,
    is_normalizable,
    is_plain,
)
from bignas.supernet.layer import Layer
from bignas.supernet.layers import EPSILON, BatchExecution, ElasticUnit

__all__ = ["FusedExecution"]


class FusedExecution(BatchExecution):
    """How layers are computed in training, by fused kernels where they apply."""

    def __init__(self, kernels: FusedKernels) -> None:
        self._kernels = kernels

    def convolve(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve, by the C library where it covers that."""
        fit = is_plain(x) or (self.takes_halves(layer) and is_normalizable(x))
        if bias is None and is_covered(layer) and fit:
            y: Tensor = _Convolution.apply(x, weight, layer, self._kernels)  # type: ignore[no-untyped-call]
            return y
        return super().convolve(layer, x, weight, bias)

    def takes_halves(self, layer: Layer) -> bool:
        """Whether it convolves bfloat16 images with float32 weights."""
        return layer.operator is Operator.DEPTHWISE and is_covered(layer)

    def finish(
        self, layer: Layer, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Normalise by the batch, add the residual and activate, in two passes over memory."""
        kind = KINDS.get(layer.activation)
        pixels = y.numel() // y.shape[1]
        unfit = kind is None or pixels < 2 or not is_normalizable(y)
        if unfit or not (residual is None or (kind == 0 and _is_like(residual, y))):
            return super().finish(layer, y, scale, shift, residual)
        z: Tensor = _Normalize.apply(y, scale, shift, residual, kind, self._kernels)  # type: ignore[no-untyped-call]
        return z

    def chain(
        self, units: Sequence[tuple[ElasticUnit, Layer]], x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Apply units one after the other, as one function where the C library covers them all."""
        layers = tuple(layer for _, layer in units)
        if not (is_chain(layers, x, residual) and (residual is None or residual is x)):
            return super().chain(units, x, residual)
        parameters = [
            one for unit, layer in units for one in (unit.kernel_for(layer), *unit.affine(layer))
        ]
        chained: Tensor = _Chain.apply(x, layers, residual is not None, self._kernels, *parameters)  # type: ignore[no-untyped-call]
        return chained


def _is_like(residual: Tensor, y: Tensor) -> bool:
    """Whether the library can add this residual to y."""
    return residual.dtype is y.dtype and is_normalizable(residual)


class _Convolution(torch.autograd.Function):
    """A convolution by the C library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: Layer, kernels: FusedKernels) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.kernels = layer, kernels
        return kernels.convolve(layer, Normalized(x), weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        found = ctx.kernels.convolve_backward(
            ctx.layer, Linked(dy, dy), Normalized(x), weight, of_input=ctx.needs_input_grad[0]
        )
        dx = None if found.of_input is None else found.of_input.g
        return dx, found.weight, None, None


class _Chain(torch.autograd.Function):
    """Convolutions with batch norms and activations; the input may be added to the last output.

    Parameters are weight, scale and shift of each layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: tuple[Layer, ...],
        has_residual: bool,
        kernels: FusedKernels,
        *parameters: Tensor,
    ) -> Tensor:
        outputs = [Normalized(x)]
        for index, layer in enumerate(layers):
            weight, scale, shift = parameters[3 * index : 3 * index + 3]
            found = kernels.convolve_normalized(layer, outputs[-1], weight, (scale, shift))
            outputs.append(Normalized(*found, KINDS[layer.activation]))
        ctx.save_for_backward(*parameters, *(one for y, norm, _ in outputs for one in (y, norm)))
        ctx.layers, ctx.kernels, ctx.has_residual = layers, kernels, has_residual
        return kernels.finish(outputs[-1], x if has_residual else None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layers, kernels, count = ctx.layers, ctx.kernels, 3 * len(ctx.layers)
        parameters, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        kinds = [0, *(KINDS[layer.activation] for layer in layers)]
        inputs = [Normalized(*one) for one in zip(kept[::2], kept[1::2], kinds, strict=True)]
        dz = gradients[0].contiguous(memory_format=torch.channels_last)
        y, norm, kind = inputs.pop()
        assert norm is not None
        vectors = (norm[0], norm[1], *parameters[-2:])
        g, scale, shift = kernels.normalize_backward(y, dz, vectors, kind)
        dy = Linked(g, g)
        found: list[Tensor | None] = []
        residual = dz if ctx.has_residual else None
        for index in reversed(range(len(layers))):
            layer, x, weight = layers[index], inputs[index], parameters[3 * index]
            at_once = index == 0 and layer.operator is not Operator.DEPTHWISE
            step = kernels.convolve_backward(layer, dy, x, weight, residual if at_once else None)
            found[:0] = [step.weight, scale, shift]
            assert step.of_input is not None
            dy, scale, shift = step.of_input, step.scale, step.shift
        if residual is not None and not at_once:
            dy.g.add_(residual)
        return dy.g, None, None, None, *found


class _Normalize(torch.autograd.Function):
    """Batch norm, residual sum and activation; with a residual there is no activation."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        kind: int,
        kernels: FusedKernels,
    ) -> Tensor:
        mean, variance = kernels.moments(y)
        inverse = torch.rsqrt(variance + EPSILON)
        factor = scale * inverse
        ctx.save_for_backward(y, mean, inverse, scale, shift)
        ctx.kind, ctx.kernels, ctx.has_residual = kind, kernels, residual is not None
        return kernels.normalize(y, residual, factor, shift - mean * factor, kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y, *vectors = ctx.saved_tensors
        dz = gradients[0].contiguous(memory_format=torch.channels_last)
        found = ctx.kernels.normalize_backward(y, dz, tuple(vectors), ctx.kind)
        return *found, dz if ctx.has_residual else None, None, None
