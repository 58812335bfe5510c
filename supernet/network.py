"""The supernet: one set of weights from which every architecture of a space takes its slice.

The architecture is an argument of every call, and so are the batch-norm statistics: the network has
no active child and no running statistics, and is safe to share.

Source: Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models",
ECCV 2020.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from bignas.device_db.errors import ArchitectureError
from bignas.supernet.architecture import Architecture
from bignas.supernet.child import Child, ConvUnit
from bignas.supernet.layer import Layer
from bignas.supernet.layers import (
    BatchExecution,
    BatchNormStatistics,
    ElasticLinear,
    ElasticUnit,
    Execution,
    FixedExecution,
)
from bignas.supernet.space import SearchSpace
from bignas.supernet.stage import Block, squeeze_channels

__all__ = ["ElasticBlock", "Supernet"]


class ElasticBlock(nn.Module):
    """Inverted residual block, fused or not, of any width, kernel and expand ratio of its stage."""

    def __init__(self, space: SearchSpace, stage: int, block: int) -> None:
        super().__init__()
        self.name = f"stages.{stage}.{block}"
        options = space.stages[stage]
        if block > 0:
            in_channels = options.channels[-1]
        else:
            in_channels = (space.stages[stage - 1].channels if stage else space.stem_channels)[-1]
        hidden = in_channels * options.expands[-1]
        kernel = options.kernels[-1]
        self.expand: ElasticUnit | None = None
        self.depthwise: ElasticUnit | None = None
        if options.block is Block.FUSED_MBCONV:
            self.expand = ElasticUnit(hidden, in_channels, kernel, depthwise=False, normalized=True)
        else:
            if options.expands[-1] > 1:
                self.expand = _pointwise(hidden, in_channels)
            self.depthwise = ElasticUnit(hidden, hidden, kernel, depthwise=True, normalized=True)
        self.squeeze_reduce: ElasticUnit | None = None
        self.squeeze_gate: ElasticUnit | None = None
        if options.squeeze_excite:
            squeezed = squeeze_channels(in_channels)
            self.squeeze_reduce = _pointwise(squeezed, hidden, normalized=False)
            self.squeeze_gate = _pointwise(hidden, squeezed, normalized=False)
        self.project = _pointwise(options.channels[-1], hidden)
        self.has_shortcut = space.has_shortcut(stage, block)

    def forward(self, x: Tensor, layers: Mapping[str, Layer], execution: Execution) -> Tensor:
        """Apply the block to x [N, in, H, W]; `layers` by name say which slice of it."""
        parts = ((self.expand, "expand"), (self.depthwise, "depthwise"))
        named = [(unit, f"{self.name}.{part}") for unit, part in parts if unit is not None]
        units = [(unit, layers[name]) for unit, name in named if name in layers]
        project = (self.project, layers[f"{self.name}.project"])
        residual = x if self.has_shortcut else None
        if self.squeeze_reduce is None or self.squeeze_gate is None:
            return execution.chain([*units, project], x, residual)
        y = execution.chain(units, x, None)
        gate = functional.adaptive_avg_pool2d(y, 1)
        gate = self.squeeze_reduce(gate, layers[f"{self.name}.squeeze_reduce"], execution)
        y = y * self.squeeze_gate(gate, layers[f"{self.name}.squeeze_gate"], execution)
        return execution.chain([project], y, residual)


class Supernet(nn.Module):
    """The weight-sharing network of `space`.

    `seed` decides the initial weights. With `zero_gamma` the last batch norm of every block that
    has a shortcut starts at zero, so that deep children start as shallow ones (BigNAS, section
    3.1).
    """

    def __init__(self, space: SearchSpace, *, seed: int = 0, zero_gamma: bool = True) -> None:
        super().__init__()
        self.space = space
        kernel = space.stem_kernel
        self.stem = ElasticUnit(
            space.stem_channels[-1], space.in_channels, kernel, depthwise=False, normalized=True
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(ElasticBlock(space, index, block) for block in range(stage.depths[-1]))
            for index, stage in enumerate(space.stages)
        )
        self.head = _pointwise(space.head_channels[-1], space.stages[-1].channels[-1])
        self.classifier = ElasticLinear(space.classes, space.head_channels[-1])
        self._initialise(torch.Generator().manual_seed(seed), zero_gamma)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, images: Tensor, arch: Architecture, statistics: BatchNormStatistics | None = None
    ) -> Tensor:
        """Logits [N, classes] of preprocessed images [N, C, resolution, resolution].

        Without statistics the batch norms use those of the batch, as in training. Raises
        ArchitectureError when the images have another size than `arch` takes, or the statistics are
        those of another architecture.
        """
        execution = BatchExecution() if statistics is None else FixedExecution(statistics)
        return self.classify(self.features(images, arch, execution))

    def features(self, images: Tensor, arch: Architecture, execution: Execution) -> Tensor:
        """Pooled features [N, head channels], the input of `classify`."""
        if tuple(images.shape[2:]) != (arch.resolution, arch.resolution):
            raise ArchitectureError(
                f"images are {images.shape[2]}x{images.shape[3]}, the architecture takes"
                f" {arch.resolution}x{arch.resolution}"
            )
        layers = {layer.name: layer for layer in self.space.layers(arch)}
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.stem(x, layers["stem"], execution)
        for blocks, choice in zip(self.stages, arch.stages, strict=True):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks[: choice.depth]:
                x = block(x, layers, execution)
        x = execution.chain([(self.head, layers["head"])], x, None)
        return functional.adaptive_avg_pool2d(x.float(), 1).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [N, classes] of pooled features."""
        logits: Tensor = self.classifier(features)
        return logits

    def slices(self, arch: Architecture) -> dict[str, Tensor]:
        """Every parameter of the child `arch` by its name there, as a view of the weights."""
        parameters: dict[str, Tensor] = {}
        for layer in self.space.layers(arch):
            if layer.weight_count == 0:
                continue
            unit = self.get_submodule(layer.name)
            assert isinstance(unit, ElasticUnit | ElasticLinear)
            for name, value in unit.slices(layer).items():
                parameters[f"{layer.name}.{name}"] = value
        return parameters

    def extract(self, arch: Architecture, statistics: BatchNormStatistics) -> Child:
        """A copy of the child `arch` as plain modules in evaluation mode.

        Raises ArchitectureError when `arch` lies outside the space or the statistics are those of
        another architecture.
        """
        self.space.check(arch)
        child = Child(self.space, arch)
        slices = self.slices(arch)
        with torch.no_grad():
            for name, parameter in child.named_parameters():
                parameter.copy_(slices[name])
            for layer in self.space.layers(arch):
                unit = child.get_submodule(layer.name)
                if isinstance(unit, ConvUnit) and unit.norm is not None:
                    _fill(unit.norm, layer.name, statistics)
        child.requires_grad_(False).eval()
        child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return child

    def _initialise(self, generator: torch.Generator, zero_gamma: bool) -> None:
        silent = {
            block.project
            for block in self.modules()
            if isinstance(block, ElasticBlock) and block.has_shortcut and zero_gamma
        }
        for module in self.modules():
            if isinstance(module, ElasticUnit):
                module.initialise(generator, zero_scale=module in silent)
        self.classifier.initialise(generator)


def _pointwise(out_channels: int, in_channels: int, *, normalized: bool = True) -> ElasticUnit:
    return ElasticUnit(out_channels, in_channels, 1, depthwise=False, normalized=normalized)


def _fill(norm: nn.BatchNorm2d, name: str, statistics: BatchNormStatistics) -> None:
    if name not in statistics or len(statistics[name][0]) != norm.num_features:
        raise ArchitectureError(f"the statistics of {name} are those of another architecture")
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = statistics[name]
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
