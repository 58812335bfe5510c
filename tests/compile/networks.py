"""Networks to compile: children of supernets with random weights, and what runs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bignas.compile.graph import KernelGraph
from bignas.compile.library import NetworkLibrary
from bignas.compile.network import CompiledNetwork, build_network
from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import Schedule, candidates
from bignas.device_db.probe import probe_local
from bignas.device_db.target import Target
from bignas.device_db.workload import Workload
from bignas.supernet.architecture import Architecture
from bignas.supernet.calibrate import calibrate
from bignas.supernet.child import Child
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space

SQUEEZE = """
name = "squeeze"
resolutions = [16, 20]
stem_channels = [8, 12]
stem_kernel = 3
stem_stride = 2
stem_activation = "swish"
head_channels = [24, 40]
head_activation = "swish"
in_channels = 3
classes = 7

[[stages]]
channels = [8, 12]
depths = [1, 2]
kernels = [3]
expands = [1]
stride = 1
activation = "swish"
squeeze_excite = true

[[stages]]
channels = [12, 20]
depths = [1, 2]
kernels = [3, 5]
expands = [2, 3]
stride = 2
activation = "swish"
squeeze_excite = true
"""

CLIPPED = """
name = "clipped"
resolutions = [14, 18]
stem_channels = [8, 10]
stem_kernel = 5
stem_stride = 1
stem_activation = "hard_swish"
head_channels = [20, 33]
head_activation = "hard_swish"
in_channels = 1
classes = 5

[[stages]]
channels = [8, 10]
depths = [1, 2]
kernels = [3, 5]
expands = [2, 3]
stride = 2
activation = "relu6"
squeeze_excite = false

[[stages]]
channels = [10, 14]
depths = [1, 2]
kernels = [3]
expands = [3]
stride = 1
activation = "hard_swish"
squeeze_excite = true
"""

DENSE = """
name = "dense"
resolutions = [15, 18]
stem_channels = [8]
stem_kernel = 3
stem_stride = 1
stem_activation = "relu"
head_channels = [24, 40]
head_activation = "relu"
in_channels = 3
classes = 6

[[stages]]
channels = [12, 18]
depths = [1, 2]
kernels = [3, 5]
expands = [1, 2]
stride = 2
activation = "relu"
squeeze_excite = false
block = "fused_mbconv"

[[stages]]
channels = [16, 24]
depths = [1, 2]
kernels = [3]
expands = [2, 3]
stride = 1
activation = "hard_swish"
squeeze_excite = true
block = "fused_mbconv"

[[stages]]
channels = [24]
depths = [1, 2]
kernels = [3, 5]
expands = [3]
stride = 2
activation = "relu"
squeeze_excite = false
"""


def space_from(text: str, folder: Path) -> SearchSpace:
    """Return the space of a TOML text."""
    path = folder / "space.toml"
    path.write_text(text, encoding="utf-8")
    return load_space(str(path))


@dataclass(frozen=True)
class Specimen:
    """A child beside the supernet and statistics it was taken from, and images for it."""

    supernet: Supernet
    statistics: Mapping[str, tuple[Tensor, Tensor]]
    child: Child
    images: Tensor  # [n, channels, resolution, resolution]


def specimen(space: SearchSpace, architecture: Architecture, seed: int = 0) -> Specimen:
    """Return a child whose norms scale and shift at random, recalibrated on random images."""
    supernet = Supernet(space, seed=seed, zero_gamma=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name.endswith("scale"):
                parameter.uniform_(0.4, 1.6, generator=generator)
            elif name.endswith("bias") or name == "classifier.weight":
                parameter.uniform_(-0.5, 0.5, generator=generator)
    shape = (64, space.in_channels, architecture.resolution, architecture.resolution)
    images = torch.randn(shape, generator=generator)
    statistics = calibrate(supernet, architecture, images)
    return Specimen(supernet, statistics, supernet.extract(architecture, statistics), images[:6])


def first_schedules(
    graph: KernelGraph, target: Target, threads: int = 1
) -> dict[Workload, Schedule]:
    """Return the best guess for each kernel, without measuring."""
    return {one: candidates(one, target, threads)[0] for one in graph.workloads}


def compile_graph(graph: KernelGraph, threads: int = 1) -> CompiledNetwork:
    """Link a network for this machine."""
    target = probe_local().target
    schedules = first_schedules(graph, target, threads)
    return build_network(graph, schedules, ObjectCache(target), threads)


def run_compiled(network: CompiledNetwork, images: np.ndarray, folder: Path) -> np.ndarray:
    """Return the binary's outputs [n, classes]."""
    path = folder / "network.so"
    path.write_bytes(network.library)
    return NetworkLibrary(path).run(images)


class Residual(nn.Module):
    """Basic block of residual networks: relu(conv(relu(conv(x))) + shortcut(x))."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """That of MobileNetV3: a hard sigmoid as the gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(self.gate(x), x)


class Inverted(nn.Module):
    """Block of MobileNetV3: expand, depthwise, squeeze-excite, project, shortcut."""

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            nn.Conv2d(hidden, hidden, kernel, 1, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            SqueezeExcite(hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = x + self.main(x)
        return shortcut


def resnet() -> nn.Module:
    """A small ResNet with all kinds of shortcuts."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        Residual(12, 12, 1),
        Residual(12, 20, 2),
        Residual(20, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 6),
    )


def mobilenet() -> nn.Module:
    """A small MobileNetV3, with its two linear layers at the end."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        Inverted(8, 24, 3),
        Inverted(8, 20, 5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 16),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(16, 6),
    )


def clipped() -> nn.Module:
    """ReLU6 and a swish written out, as exporters and older code have them."""

    class WrittenOut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    class HandMade(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * nn.functional.relu6(x + 3) / 6

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        WrittenOut(),
        nn.Conv2d(8, 14, 1),
        HandMade(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(14, 6),
        nn.Sigmoid(),
    )


def headless() -> nn.Module:
    """A network that ends with its pooling, one pixel a class."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module in evaluation mode with norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            assert child.running_mean is not None
            assert child.running_var is not None
            with torch.no_grad():
                child.weight.uniform_(0.5, 1.5, generator=generator)
                child.bias.uniform_(-0.5, 0.5, generator=generator)
                child.running_mean.uniform_(-0.5, 0.5, generator=generator)
                child.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()
