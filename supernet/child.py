"""A child network on its own: plain torch modules with the weights of one architecture.

Module paths equal the names of `SearchSpace.layers`, so a layer, its module, its measured kernel
and its predicted latency are found by one name. Exported to ONNX in evaluation mode, the batch
norms fold into the convolutions and nothing but Conv, activations, Add, Mul, GlobalAveragePool,
Flatten and Gemm remains.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from bignas.device_db.workload import Activation, Operator
from bignas.supernet.architecture import Architecture
from bignas.supernet.layer import Layer
from bignas.supernet.layers import EPSILON
from bignas.supernet.space import SearchSpace

__all__ = ["Child", "ChildBlock", "ConvUnit", "Scale"]

_MODULES: Mapping[Activation, Callable[[], nn.Module]] = MappingProxyType(
    {
        Activation.NONE: nn.Identity,
        Activation.RELU: nn.ReLU,
        Activation.RELU6: nn.ReLU6,
        Activation.HARD_SWISH: nn.Hardswish,
        Activation.SWISH: nn.SiLU,
        Activation.SIGMOID: nn.Sigmoid,
        Activation.HARD_SIGMOID: nn.Hardsigmoid,
    }
)


class ConvUnit(nn.Module):
    """Convolution, batch norm (unless the convolution has a bias), residual sum, activation."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            layer.stride,
            layer.padding,
            groups=layer.in_channels if layer.operator is Operator.DEPTHWISE else 1,
            bias=not layer.normalized,
        )
        self.norm = nn.BatchNorm2d(layer.out_channels, eps=EPSILON) if layer.normalized else None
        self.activation = _MODULES[layer.activation]()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the unit to x [N, in, H, W]."""
        y: Tensor = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        if residual is not None:
            y = y + residual
        activated: Tensor = self.activation(y)
        return activated


class Scale(nn.Module):
    """Multiply every channel by its gate, the last step of a squeeze-excite."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Scale x [N, C, H, W] by gate [N, C, 1, 1]."""
        return x * gate


class ChildBlock(nn.Module):
    """Inverted residual block: expand, depthwise, squeeze-excite, project; the parts it has."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self.expand = ConvUnit(layers["expand"]) if "expand" in layers else None
        self.depthwise = ConvUnit(layers["depthwise"]) if "depthwise" in layers else None
        self.has_squeeze = "squeeze_pool" in layers
        if self.has_squeeze:
            self.squeeze_pool = nn.AdaptiveAvgPool2d(1)
            self.squeeze_reduce = ConvUnit(layers["squeeze_reduce"])
            self.squeeze_gate = ConvUnit(layers["squeeze_gate"])
            self.squeeze_scale = Scale()
        self.project = ConvUnit(layers["project"])
        self.has_shortcut = layers["project"].residual

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x [N, in, H, W]."""
        y = x if self.expand is None else self.expand(x)
        y = y if self.depthwise is None else self.depthwise(y)
        if self.has_squeeze:
            gate = self.squeeze_gate(self.squeeze_reduce(self.squeeze_pool(y)))
            y = self.squeeze_scale(y, gate)
        projected: Tensor = self.project(y, x if self.has_shortcut else None)
        return projected


class Child(nn.Module):
    """The network of one architecture; made by `Supernet.extract`, which fills in the weights.

    Input: preprocessed images [N, in_channels, resolution, resolution], output: logits
    [N, classes].
    """

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        super().__init__()
        self.space = space
        self.architecture = architecture
        layers = {layer.name: layer for layer in space.layers(architecture)}
        blocks: list[list[dict[str, Layer]]] = [
            [{} for _ in range(stage.depth)] for stage in architecture.stages
        ]
        for name, layer in layers.items():
            if name.startswith("stages."):
                _, stage, block, part = name.split(".")
                blocks[int(stage)][int(block)][part] = layer
        self.stem = ConvUnit(layers["stem"])
        self.stages = nn.Sequential(
            *(nn.Sequential(*(ChildBlock(block) for block in stage)) for stage in blocks)
        )
        self.head = ConvUnit(layers["head"])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(layers["classifier"].in_channels, space.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the images; any batch size, one included."""
        features = self.flatten(self.pool(self.head(self.stages(self.stem(images)))))
        logits: Tensor = self.classifier(features)
        return logits
