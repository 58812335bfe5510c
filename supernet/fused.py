"""Fused training kernels for the CPU, compiled from `fused.c` when training starts.

torch computes the gradients of depthwise convolutions at a tenth of the machine's speed, and batch
norm, residual sum and activation as separate passes over memory. `FusedExecution` does both with a
small C library; whatever the library does not cover goes the way of `BatchExecution`, and where
there is no C compiler `training_execution` returns that one. Results agree to rounding, and do not
depend on the number of threads.
"""

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bignas.device_db.records import Activation, Operator
from bignas.supernet.layers import EPSILON, BatchExecution
from bignas.supernet.space import Layer

__all__ = [
    "FusedExecution",
    "FusedKernels",
    "keep_freed_memory",
    "load_fused_kernels",
    "training_execution",
]

_FLAGS = ("-O3", "-march=native", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_LANES = 16  # as in fused.c
_KERNELS = (3, 5)
_STRIDES = (1, 2)
_ACTIVATIONS: Mapping[Activation, int] = MappingProxyType(
    {Activation.NONE: 0, Activation.RELU: 1, Activation.RELU6: 2, Activation.HARD_SWISH: 3}
)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt
_LARGEST_INT = 2**31 - 1


class _Geometry(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("images", "channels", "height", "width", "out_height", "out_width")
    )


class FusedKernels:
    """The functions of `fused.c` on float32 tensors that are dense in channels-last order."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, each [C], of y [N, C, H, W]."""
        mean, variance = y.new_empty(y.shape[1]), y.new_empty(y.shape[1])
        self._call("moments", y, *_size(y), mean, variance)
        return mean, variance

    def normalize(
        self, y: Tensor, residual: Tensor | None, factor: Tensor, offset: Tensor, kind: int
    ) -> Tensor:
        """activation(y * factor + offset + residual), [N, C, H, W]."""
        z = torch.empty_like(y)
        self._call("normalize", y, residual, z, factor, offset, *_size(y), kind)
        return z

    def normalize_backward(
        self, y: Tensor, dz: Tensor, vectors: tuple[Tensor, Tensor, Tensor, Tensor], kind: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of y, scale and shift; `vectors`: mean, 1 / deviation, scale, shift, [C]."""
        dy = torch.empty_like(y)
        dscale, dshift = torch.empty_like(vectors[0]), torch.empty_like(vectors[0])
        self._call("normalize_backward", y, dz, dy, *vectors, dscale, dshift, *_size(y), kind)
        return dy, dscale, dshift

    def depthwise_backward(
        self, x: Tensor, weight: Tensor, dz: Tensor, stride: int
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x [N, C, H, W] and of weight [C, 1, k, k], padded by k // 2."""
        channels, _, kernel, _ = weight.shape
        taps = weight.permute(2, 3, 1, 0).contiguous()
        dx, dtaps = torch.empty_like(x), torch.empty_like(taps)
        geometry = _Geometry(x.shape[0], channels, *x.shape[2:], *dz.shape[2:])
        self._call("depthwise_backward", x, dz, dx, taps, dtaps, geometry, kernel, stride)
        return dx, dtaps.permute(3, 2, 0, 1)

    def _call(self, name: str, *arguments: Any) -> None:
        converted = [_argument(argument) for argument in arguments]
        if getattr(self._library, name)(*converted, torch.get_num_threads()):
            raise MemoryError(f"no memory for {name}")


class FusedExecution(BatchExecution):
    """How layers are computed in training, by fused kernels where they apply."""

    def __init__(self, kernels: FusedKernels) -> None:
        self._kernels = kernels

    def convolve(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; the gradients of depthwise convolutions are those of the C library."""
        if (
            layer.operator is Operator.DEPTHWISE
            and layer.kernel in _KERNELS
            and layer.stride in _STRIDES
            and layer.padding == layer.kernel // 2
            and layer.in_channels >= _LANES
            and bias is None
            and _is_plain(x)
        ):
            y: Tensor = _Depthwise.apply(x, weight, layer.stride, self._kernels)  # type: ignore[no-untyped-call]
            return y
        return super().convolve(layer, x, weight, bias)

    def finish(
        self, layer: Layer, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Normalise by the batch, add the residual and activate, in two passes over memory."""
        kind = _ACTIVATIONS.get(layer.activation)
        pixels = y.numel() // y.shape[1]
        unfit = kind is None or pixels < 2 or not _is_plain(y)
        if unfit or (residual is not None and (kind != 0 or not _is_plain(residual))):
            return super().finish(layer, y, scale, shift, residual)
        z: Tensor = _Normalize.apply(y, scale, shift, residual, kind, self._kernels)  # type: ignore[no-untyped-call]
        return z


@functools.cache
def load_fused_kernels() -> FusedKernels | None:
    """Compile the library for this machine; None when that is impossible here."""
    source = resources.files("bignas.supernet").joinpath("fused.c").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fused.so")
        try:
            command = ["cc", *_FLAGS, "-x", "c", "-", "-o", str(path), "-lm"]
            subprocess.run(command, input=source, check=True, capture_output=True)
            return FusedKernels(ctypes.CDLL(str(path)))
        except (OSError, subprocess.CalledProcessError):
            return None


def training_execution(*, fused: bool = True) -> BatchExecution:
    """The fastest way to train on this machine; with `fused` false, torch's own kernels."""
    kernels = load_fused_kernels() if fused else None
    return BatchExecution() if kernels is None else FusedExecution(kernels)


def keep_freed_memory() -> None:
    """Let the allocator of this process reuse large blocks instead of returning them (glibc).

    Every activation would otherwise be mapped and filled with zeros by the kernel, step by step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _LARGEST_INT)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution: forward by torch, backward by the C library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, kernels: FusedKernels) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.kernels = stride, kernels
        padding = weight.shape[-1] // 2
        return functional.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dz = gradients[0].contiguous(memory_format=torch.channels_last)
        return *ctx.kernels.depthwise_backward(x, weight, dz, ctx.stride), None, None


class _Normalize(torch.autograd.Function):
    """Batch norm, residual sum and activation; with a residual there is no activation."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        kind: int,
        kernels: FusedKernels,
    ) -> Tensor:
        mean, variance = kernels.moments(y)
        inverse = torch.rsqrt(variance + EPSILON)
        factor = scale * inverse
        ctx.save_for_backward(y, mean, inverse, scale, shift)
        ctx.kind, ctx.kernels, ctx.has_residual = kind, kernels, residual is not None
        return kernels.normalize(y, residual, factor, shift - mean * factor, kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y, *vectors = ctx.saved_tensors
        dz = gradients[0].contiguous(memory_format=torch.channels_last)
        found = ctx.kernels.normalize_backward(y, dz, tuple(vectors), ctx.kind)
        return *found, dz if ctx.has_residual else None, None, None


def _is_plain(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _size(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[1], y.shape[1]


def _argument(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.byref(value) if isinstance(value, _Geometry) else ctypes.c_int64(value)
