"""Batch-norm statistics of one child, computed anew from training images.

Shared weights see activations of another distribution in every child, so no running average fits
them all; each child is given its own statistics before it is evaluated or exported (Yu et al.,
"BigNAS", section 3.1; Yu and Huang, "Universally Slimmable Networks", ICCV 2019).
"""

import torch
from torch import Tensor
from torch.nn import functional

from bignas.device_db.errors import DataError
from bignas.supernet.layers import EPSILON, BatchNormStatistics, Execution
from bignas.supernet.network import Supernet
from bignas.supernet.space import Architecture

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
    recorder = _Recorder()
    with torch.no_grad():
        for batch in torch.split(images, batch_size):
            network.features(batch, arch, recorder)
    return recorder.statistics()


class _Recorder(Execution):
    """Normalises by the batch and adds up what it saw."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, Tensor, Tensor]] = {}

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
        mean, variance = mean.double(), variance.double() * ((count - 1) / count)  # was unbiased
        first, second = count * mean, count * (variance + mean * mean)
        if name in self._sums:
            before = self._sums[name]
            count, first, second = count + before[0], first + before[1], second + before[2]
        self._sums[name] = (count, first, second)
        return y

    def statistics(self) -> BatchNormStatistics:
        """Mean and variance of everything seen."""
        result = {}
        for name, (count, first, second) in self._sums.items():
            mean = first / count
            variance = (second / count - mean * mean).clamp(min=0.0)
            result[name] = (mean.float(), variance.float())
        return result
