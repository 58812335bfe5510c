"""Batch-norm statistics of one child, computed anew from training images.

Shared weights see activations of another distribution in every child, so no running average fits
them all; each child is given its own statistics before it is evaluated or exported (Yu et al.,
"BigNAS", section 3.1; Yu and Huang, "Universally Slimmable Networks", ICCV 2019).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bignas.device_db.errors import DataError
from bignas.supernet.architecture import Architecture
from bignas.supernet.fused_kernels import (
    KINDS,
    FusedKernels,
    Normalized,
    is_chain,
    is_covered,
    is_plain,
    load_fused_kernels,
)
from bignas.supernet.layer import Layer
from bignas.supernet.layers import EPSILON, BatchNormStatistics, ElasticUnit, Execution
from bignas.supernet.network import Supernet

__all__ = ["calibrate"]


def calibrate(
    network: Supernet, arch: Architecture, images: Tensor, batch_size: int = 256
) -> BatchNormStatistics:
    """Statistics of `arch` over preprocessed images [N, C, resolution, resolution].

    Each batch is normalised by its own statistics, as in training; mean and variance are those of
    all batches together. Raises DataError when there are no images, or too few to have a variance.
    """
    if len(images) == 0:
        raise DataError("calibration needs at least one image")
    seen = _Seen()
    kernels = load_fused_kernels()
    recorder = _Recorder(seen) if kernels is None else _FusedRecorder(seen, kernels)
    with torch.no_grad():
        for batch in torch.split(images, batch_size):
            network.features(batch, arch, recorder)
    return seen.statistics()


class _Seen:
    """Sums of what the outputs of layers were."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def add(self, name: str, y: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Add y [N, C, H, W] with its moments [C]; the variance is biased."""
        count = y.numel() // y.shape[1]
        mean, variance = mean.double(), variance.double()
        first, second = count * mean, count * (variance + mean * mean)
        if name in self._sums:
            before = self._sums[name]
            count, first, second = count + before[0], first + before[1], second + before[2]
        self._sums[name] = (count, first, second)

    def statistics(self) -> BatchNormStatistics:
        """Mean and variance of everything seen."""
        result = {}
        for name, (count, first, second) in self._sums.items():
            mean = first / count
            variance = (second / count - mean * mean).clamp(min=0.0)
            result[name] = (mean.float(), variance.float())
        return result


class _Recorder(Execution):
    """Normalises by the batch and remembers what it saw."""

    def __init__(self, seen: _Seen) -> None:
        self._seen = seen

    def normalize(self, name: str, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise by the moments of x, and remember them."""
        count = x.numel() // x.shape[1]
        if count < 2:
            raise DataError("calibration needs more images: a variance of one value is none")
        mean = torch.zeros(x.shape[1])
        variance = torch.zeros(x.shape[1])
        y = functional.batch_norm(
            x, mean, variance, scale, shift, training=True, momentum=1.0, eps=EPSILON
        )
        self._seen.add(name, x, mean, variance * ((count - 1) / count))  # was unbiased
        return y


class _FusedRecorder(_Recorder):
    """The same by the C library, where that covers it."""

    def __init__(self, seen: _Seen, kernels: FusedKernels) -> None:
        super().__init__(seen)
        self._kernels = kernels

    def convolve(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve."""
        if bias is None and is_covered(layer) and is_plain(x):
            return self._kernels.convolve(layer, Normalized(x), weight)
        return super().convolve(layer, x, weight, bias)

    def chain(
        self, units: Sequence[tuple[ElasticUnit, Layer]], x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Apply units one after the other; only the last output is normalised by itself."""
        if not is_chain([layer for _, layer in units], x, residual):
            return super().chain(units, x, residual)
        last = Normalized(x)
        for unit, layer in units:
            weight, affine = unit.kernel_for(layer), unit.affine(layer)
            y, norm = self._kernels.convolve_normalized(layer, last, weight, affine)
            self._seen.add(layer.name, y, norm[0], norm[1].double().pow(-2) - EPSILON)
            last = Normalized(y, norm, KINDS[layer.activation])
        return self._kernels.finish(last, residual)
