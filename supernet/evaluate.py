"""Accuracy of children as they are: batch norm recalibrated, nothing retrained."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bignas.device_db.errors import DataError
from bignas.supernet.architecture import Architecture
from bignas.supernet.calibrate import calibrate
from bignas.supernet.child import Child, ConvUnit
from bignas.supernet.data import ImageData, Split, preprocess
from bignas.supernet.fused_inference import inference_execution
from bignas.supernet.memory import keep_freed_memory
from bignas.supernet.network import Supernet

__all__ = [
    "Evaluation",
    "count_correct",
    "evaluate_architectures",
    "extract_calibrated",
    "predict",
]

BATCH = 64  # images at once; the activations of more of them leave the caches


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy (0 to 1) of one architecture, with its MACs and parameters."""

    arch: Architecture
    top1: float
    macs: int
    params: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "arch": self.arch.to_dict(),
            "top1": self.top1,
            "macs": self.macs,
            "params": self.params,
        }


def predict(
    child: Child,
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = BATCH,
) -> np.ndarray:
    """Logits, float32 [N, classes], of raw images, uint8 [N, H, W, 3]."""
    resolution = child.architecture.resolution
    folded = _folded(child)
    logits = [np.empty((0, child.space.classes), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = preprocess(images[start : start + batch_size], resolution, mean, std)
            logits.append(folded(batch).numpy())
    return np.concatenate(logits)


def extract_calibrated(network: Supernet, arch: Architecture, data: ImageData) -> Child:
    """The child `arch` with batch-norm statistics of the calibration split.

    The process keeps the memory that it frees from then on: otherwise much of the time goes into
    getting the same pages again.
    """
    network.space.check(arch)
    keep_freed_memory()
    images = preprocess(data.calibration.images, arch.resolution, data.mean, data.std)
    return network.extract(arch, calibrate(network, arch, images))


def count_correct(network: Supernet, arch: Architecture, data: ImageData, split: Split) -> int:
    """How many images of `split` the child `arch` classifies correctly, calibrated on `data`.

    The same to rounding as the child that is extracted, but computed in the supernet. The process
    keeps the memory that it frees from then on. Raises DataError when there are no images.
    """
    if len(split) == 0:
        raise DataError("there are no images to evaluate on")
    keep_freed_memory()
    calibration = preprocess(data.calibration.images, arch.resolution, data.mean, data.std)
    execution = inference_execution(calibrate(network, arch, calibration))
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(split), BATCH):
            images = split.images[start : start + BATCH]
            batch = preprocess(images, arch.resolution, data.mean, data.std)
            found = network.classify(network.features(batch, arch, execution)).argmax(1).numpy()
            correct += int((found == split.labels[start : start + BATCH]).sum())
    return correct


def evaluate_architectures(
    network: Supernet,
    archs: Sequence[Architecture],
    data: ImageData,
    split: str,
    max_images: int | None = None,
) -> list[Evaluation]:
    """Calibrate and evaluate every architecture on the first `max_images` images of `split`.

    Raises ArchitectureError for architectures outside the network's space, and DataError for an
    unknown split or another number of classes.
    """
    if network.space.classes != len(data.classes):
        raise DataError(
            f"data {data.name!r} has {len(data.classes)} classes, the network"
            f" {network.space.classes}"
        )
    chosen = data.split(split)
    if max_images is not None:
        chosen = chosen.take(np.arange(min(max_images, len(chosen))))
    evaluations = []
    for arch in archs:
        network.space.check(arch)
        top1 = count_correct(network, arch, data, chosen) / len(chosen)
        space = network.space
        evaluations.append(Evaluation(arch, top1, space.macs(arch), space.params(arch)))
    return evaluations


def _folded(child: Child) -> Child:
    """The same function with batch norms folded into convolutions, as in the binary."""
    folded = copy.deepcopy(child).eval()
    for unit in folded.modules():
        if isinstance(unit, ConvUnit) and unit.norm is not None:
            unit.conv, unit.norm = fuse_conv_bn_eval(unit.conv, unit.norm), None
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded
