"""The networks of the race: usual CNNs, children of `bignas`, children of `cifar`.

Children are those of an untrained supernet with recalibrated batch norm: latency does not depend on
the values of weights. All are functions of fixed seeds, so every run races the same networks.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import ModelFiles
from models import make_model

from bignas.compile.onnx_export import export_onnx
from bignas.latency.subnets import spread_sample
from bignas.supernet.architecture import Architecture
from bignas.supernet.calibrate import calibrate
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space

__all__ = ["Group", "RaceModel", "nearest_child", "race_models", "write_model"]

USUAL_RESOLUTION = 224
BIGNAS_MACS = (240_000_000, 420_000_000)  # of the published children S and M
CIFAR_CHILDREN = 10
CALIBRATION_IMAGES = 64
CANDIDATES = 200
MUTATIONS = 2000


class Group(StrEnum):
    """Networks that are summarised together; ResNet-18 stands apart: peers use Winograd there."""

    USUAL = "usual"
    RESNET = "resnet"
    BIGNAS = "bignas"
    CIFAR = "cifar"


@dataclass(frozen=True, slots=True)
class RaceModel:
    """A network of the race; `build` makes its torch module, in evaluation mode."""

    name: str
    group: Group
    resolution: int
    build: Callable[[], torch.nn.Module]


def race_models() -> Mapping[str, RaceModel]:
    """Return the networks of the race by name, in the order of the race."""
    usual = [
        RaceModel(name, group, USUAL_RESOLUTION, functools.partial(make_model, name))
        for name, group in (
            ("mobilenet_v2", Group.USUAL),
            ("efficientnet_lite0", Group.USUAL),
            ("resnet18", Group.RESNET),
        )
    ]
    bignas, cifar = load_space("bignas"), load_space("cifar")
    big = [
        _child(f"bignas_{macs // 1_000_000}m", Group.BIGNAS, bignas, nearest_child(bignas, macs))
        for macs in BIGNAS_MACS
    ]
    spread = spread_sample(cifar, CIFAR_CHILDREN, np.random.default_rng(0))
    small = [_child(f"cifar_{index}", Group.CIFAR, cifar, one) for index, one in enumerate(spread)]
    return {model.name: model for model in (*usual, *big, *small)}


def nearest_child(
    space: SearchSpace, macs: int, resolution: int = USUAL_RESOLUTION
) -> Architecture:
    """Return the child with the MACs nearest to `macs` that a search of fixed seed finds.

    The resolution is the greatest one, at most `resolution`, that has children so small; the least
    one of the space if none has.
    """
    fitting = space
    for pixels in sorted(space.resolutions, reverse=True):
        fitting = dataclasses.replace(space, resolutions=(pixels,))
        if pixels <= resolution and fitting.macs(fitting.smallest()) <= macs:
            break
    random = np.random.default_rng(0)

    def distance(architecture: Architecture) -> int:
        return abs(fitting.macs(architecture) - macs)

    samples = [fitting.sample(random) for _ in range(CANDIDATES)]
    best = min([fitting.smallest(), fitting.biggest(), *samples], key=distance)
    for _ in range(MUTATIONS):
        best = min(best, fitting.mutate(best, random, 0.1), key=distance)
    return best


def write_model(model: RaceModel, folder: Path) -> ModelFiles:
    """Write a network into a new folder below `folder`, in the forms that engines start from."""
    files = ModelFiles(folder / model.name)
    files.folder.mkdir(parents=True)
    module = model.build()
    shape = (1, 3, model.resolution, model.resolution)
    image = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    np.save(files.image, image)
    files.onnx.write_bytes(export_onnx(module, model.resolution))
    example = (torch.from_numpy(image),)
    jit: Any = torch.jit  # has no types
    jit.trace(_Named(module).eval(), example).save(str(files.traced))
    return files


class _Named(torch.nn.Module):
    """pnnx writes module paths out as Python names, which must not start with a digit."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(x)
        return scores


def _child(name: str, group: Group, space: SearchSpace, architecture: Architecture) -> RaceModel:
    return RaceModel(
        name, group, architecture.resolution, functools.partial(_extract, space, architecture)
    )


def _extract(space: SearchSpace, architecture: Architecture) -> torch.nn.Module:
    network = Supernet(space, seed=0)
    generator = torch.Generator().manual_seed(1)
    shape = (
        CALIBRATION_IMAGES,
        space.in_channels,
        architecture.resolution,
        architecture.resolution,
    )
    images = torch.randn(shape, generator=generator)
    return network.extract(architecture, calibrate(network, architecture, images)).eval()
