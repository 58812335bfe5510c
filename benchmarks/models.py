"""The usual CNNs, written out as small torch modules with random weights.

Architectures as their papers and torchvision have them: MobileNetV2 and V3, EfficientNet-B0 and
Lite0, ResNet-18. Latency and parity do not depend on trained weights; batch norms get random
statistics, so that folding them is not the identity. Used by the tests and by the races.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bignas.compile.onnx_export import export_onnx

__all__ = ["MODELS", "make_model", "model_onnx"]

Activation = Callable[[], nn.Module]


def _divisible(channels: float) -> int:
    """Round to a multiple of 8 that is at least nine tenths of the channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _convolution(
    inner: int,
    outer: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: Activation | None = None,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outer),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate computed from the means of all channels."""

    def __init__(
        self, channels: int, squeezed: int, activation: Activation, gate: Activation
    ) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            activation(),
            nn.Conv2d(squeezed, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.gate(x)
        return scaled


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, squeeze-excite where there is one, project, shortcut where it fits."""

    def __init__(
        self,
        inner: int,
        hidden: int,
        outer: int,
        kernel: int,
        stride: int,
        activation: Activation,
        squeeze_excite: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != inner:
            layers.append(_convolution(inner, hidden, 1, activation=activation))
        layers.append(_convolution(hidden, hidden, kernel, stride, hidden, activation))
        if squeeze_excite is not None:
            layers.append(squeeze_excite)
        layers.append(_convolution(hidden, outer, 1))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class Classifier(nn.Module):
    """Mean over height and width, then the layers of the head."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(self.pool(x).flatten(1))
        return scores


def mobilenet_v2(classes: int) -> nn.Module:
    """MobileNetV2-1.0 (Sandler et al. 2018)."""
    stages = [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]  # fmt: skip
    layers: list[nn.Module] = [_convolution(3, 32, 3, 2, activation=nn.ReLU6)]
    inner = 32
    for expand, outer, depth, first_stride in stages:
        for index in range(depth):
            stride = first_stride if index == 0 else 1
            layers.append(InvertedBottleneck(inner, inner * expand, outer, 3, stride, nn.ReLU6))
            inner = outer
    layers.append(_convolution(inner, 1280, 1, activation=nn.ReLU6))
    return nn.Sequential(*layers, Classifier(nn.Dropout(0.2), nn.Linear(1280, classes)))


# kernel, hidden, outer, squeeze-excite, hard swish, stride
V3Row = tuple[int, int, int, bool, bool, int]
V3_LARGE: tuple[V3Row, ...] = (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip
V3_SMALL: tuple[V3Row, ...] = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip


def _mobilenet_v3(rows: tuple[V3Row, ...], head: int, last: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_convolution(3, 16, 3, 2, activation=nn.Hardswish)]
    inner = 16
    for kernel, hidden, outer, squeezed, hard, stride in rows:
        squeeze_excite = None
        if squeezed:
            squeeze_excite = SqueezeExcite(hidden, _divisible(hidden / 4), nn.ReLU, nn.Hardsigmoid)
        activation: Activation = nn.Hardswish if hard else nn.ReLU
        layers.append(
            InvertedBottleneck(inner, hidden, outer, kernel, stride, activation, squeeze_excite)
        )
        inner = outer
    layers.append(_convolution(inner, head, 1, activation=nn.Hardswish))
    return nn.Sequential(
        *layers,
        Classifier(
            nn.Linear(head, last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(last, classes)
        ),
    )


def mobilenet_v3_large(classes: int) -> nn.Module:
    """MobileNetV3 large (Howard et al. 2019)."""
    return _mobilenet_v3(V3_LARGE, 960, 1280, classes)


def mobilenet_v3_small(classes: int) -> nn.Module:
    """MobileNetV3 small (Howard et al. 2019)."""
    return _mobilenet_v3(V3_SMALL, 576, 1024, classes)


# expand, kernel, stride, channels, depth
EFFICIENT_STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip


def _efficientnet(activation: Activation, squeeze_excite: bool, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_convolution(3, 32, 3, 2, activation=activation)]
    inner = 32
    for expand, kernel, first_stride, outer, depth in EFFICIENT_STAGES:
        for index in range(depth):
            hidden = inner * expand
            gate = None
            if squeeze_excite:
                gate = SqueezeExcite(hidden, max(1, inner // 4), nn.SiLU, nn.Sigmoid)
            stride = first_stride if index == 0 else 1
            layers.append(
                InvertedBottleneck(inner, hidden, outer, kernel, stride, activation, gate)
            )
            inner = outer
    layers.append(_convolution(inner, 1280, 1, activation=activation))
    return nn.Sequential(*layers, Classifier(nn.Dropout(0.2), nn.Linear(1280, classes)))


def efficientnet_b0(classes: int) -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019)."""
    return _efficientnet(nn.SiLU, squeeze_excite=True, classes=classes)


def efficientnet_lite0(classes: int) -> nn.Module:
    """EfficientNet-Lite0: ReLU6, no squeeze-excite, stem and head as in B0."""
    return _efficientnet(nn.ReLU6, squeeze_excite=False, classes=classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(inner, outer, 3, stride, activation=nn.ReLU),
            _convolution(outer, outer, 3),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = _convolution(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


def resnet18(classes: int) -> nn.Module:
    """ResNet-18 (He et al. 2015)."""
    layers: list[nn.Module] = [
        _convolution(3, 64, 7, 2, activation=nn.ReLU),
        nn.MaxPool2d(3, 2, 1),
    ]
    inner = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(inner, outer, stride), BasicBlock(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, Classifier(nn.Linear(512, classes)))


MODELS: Mapping[str, Callable[[int], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3_small,
    "efficientnet_b0": efficientnet_b0,
    "efficientnet_lite0": efficientnet_lite0,
    "resnet18": resnet18,
}


def make_model(name: str, classes: int = 1000, seed: int = 0) -> nn.Module:
    """Return a model by name, in evaluation mode, its weights a function of the seed.

    Convolutions keep the scale of what they are given, so that values neither vanish nor explode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name](classes)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                elif isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.weight.uniform_(0.7, 1.3)
                    module.bias.uniform_(-0.3, 0.3)
                    module.running_mean.uniform_(-0.3, 0.3)
                    module.running_var.uniform_(0.7, 1.3)
    return model.eval()


def model_onnx(name: str, resolution: int = 224, classes: int = 1000, seed: int = 0) -> bytes:
    """Return a model of random weights as ONNX, input [1, 3, resolution, resolution]."""
    return export_onnx(make_model(name, classes, seed), resolution)
