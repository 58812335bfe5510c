"""A stem that starts with filters which whiten the images.

The filters are the principal directions of the patches of training images, each with its negative,
as an activation lets only one of the two pass; the batch norm behind them brings them to the same
variance.

Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks", 2019; K. Jordan, "94% on CIFAR-10 in
3.29 Seconds on a Single GPU", arXiv 2404.00498, 2024 (there the filters stay as they start).
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bignas.supernet.data import ImageData, Split, preprocess
from bignas.supernet.network import Supernet

__all__ = ["principal_filters", "whiten_stem"]

_PATCHES = 1_000_000
_FEWEST_IMAGES = 16
_BATCH = 16  # images whose patches are in memory at once


def whiten_stem(network: Supernet, data: ImageData, train: Split) -> None:
    """Set the filters of the stem from some of the images, spread evenly over `train`.

    A stem with more filters than there are directions, twice, keeps the others as they are.
    """
    resolution = network.space.resolutions[-1]
    count = min(len(train), max(_FEWEST_IMAGES, _PATCHES // resolution**2))
    images = train.images[np.linspace(0, len(train) - 1, count).astype(np.int64)]
    weight = network.stem.weight
    filters = principal_filters(
        preprocess(images, resolution, data.mean, data.std), weight.shape[-1]
    )
    with torch.no_grad():
        weight[: len(filters)] = filters[: len(weight)]


def principal_filters(images: Tensor, kernel: int) -> Tensor:
    """Directions of most variance of the patches of images [N, C, H, W], and their negatives.

    Float32 [2 * C * kernel * kernel, C, kernel, kernel], of norm 1, those of most variance first;
    each is followed by its negative.
    """
    channels = images.shape[1]
    size = channels * kernel * kernel
    moment, patches = torch.zeros(size, size, dtype=torch.float64), 0
    for batch in torch.split(images, _BATCH):
        found = functional.unfold(batch, kernel).transpose(1, 2).reshape(-1, size)
        moment += (found.T @ found).double()
        patches += len(found)
    _, directions = torch.linalg.eigh(moment / patches)  # in columns, of rising variance
    filters = directions.T.flip(0).float().reshape(size, channels, kernel, kernel)
    return torch.stack([filters, -filters], 1).flatten(0, 1)
