"""Calibrated children by the C library, batch norms folded into convolutions as in a binary.

Each convolution adds what is left of its batch norm, the residual and the activation while its
output is in the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bignas.supernet.fused_kernels import (
    KINDS,
    FusedKernels,
    is_chain,
    is_plain,
    load_fused_kernels,
)
from bignas.supernet.layer import Layer
from bignas.supernet.layers import (
    EPSILON,
    BatchNormStatistics,
    ElasticUnit,
    FixedExecution,
)

__all__ = ["inference_execution"]


class _FoldedExecution(FixedExecution):
    """Batch norms use given statistics; weights are folded once, so they must not change."""

    def __init__(self, statistics: BatchNormStatistics, kernels: FusedKernels) -> None:
        super().__init__(statistics)
        self._kernels = kernels
        self._folded: dict[str, tuple[Tensor, Tensor]] = {}

    def finish(
        self, layer: Layer, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Normalise, add the residual and activate, in one pass over memory."""
        kind = KINDS.get(layer.activation)
        if kind is None or not is_plain(y) or not (residual is None or is_plain(residual)):
            return super().finish(layer, y, scale, shift, residual)
        factor, offset = self._affine(layer, scale, shift)
        return self._kernels.normalize(y, residual, factor, offset, kind)

    def chain(
        self, units: Sequence[tuple[ElasticUnit, Layer]], x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Apply units one after the other, each in one pass over memory."""
        if not is_chain([layer for _, layer in units], x, residual):
            return super().chain(units, x, residual)
        last = units[-1][1]
        for unit, layer in units:
            weight, bias = self._fold(unit, layer)
            added = residual if layer is last else None
            x = self._kernels.convolve_folded(layer, x, weight, bias, added)
        return x

    def _fold(self, unit: ElasticUnit, layer: Layer) -> tuple[Tensor, Tensor]:
        found = self._folded.get(layer.name)
        if found is None:
            factor, offset = self._affine(layer, *unit.affine(layer))
            found = (unit.kernel_for(layer) * factor.reshape(-1, 1, 1, 1), offset)
            self._folded[layer.name] = found
        return found

    def _affine(self, layer: Layer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and offset [C] that a batch norm comes to."""
        mean, variance = self.moments(layer.name, len(scale))
        factor = scale * torch.rsqrt(variance + EPSILON)
        return factor, shift - mean * factor


def inference_execution(statistics: BatchNormStatistics) -> FixedExecution:
    """The fastest way to compute a child with these statistics; its weights must not change."""
    kernels = load_fused_kernels()
    if kernels is None:
        return FixedExecution(statistics)
    return _FoldedExecution(statistics, kernels)
