"""The C library behind training and evaluation on a CPU, compiled from `fused*.c`.

torch computes depthwise convolutions and their gradients far below the machine's speed, and batch
norm, residual sum and activation as separate passes over memory. This library does it at once: each
convolution normalises and activates what it reads, and sums up the moments of what it writes while
that is in the cache; likewise on the way back. So between convolutions only their plain outputs are
stored, and memory is read and written half as often. Results agree with torch's to rounding, and do
not depend on the number of threads.

The library is compiled where it is first needed, for the processor at hand, and kept in the cache
folder. Where there is no C compiler there is none, and torch has to do.
"""

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bignas.device_db.errors import OutputError
from bignas.device_db.files import cache_folder, write_atomically
from bignas.device_db.workload import Activation, Operator
from bignas.supernet.layer import Layer
from bignas.supernet.layers import EPSILON

__all__ = [
    "KINDS",
    "FusedKernels",
    "Gradients",
    "Linked",
    "Normalized",
    "is_chain",
    "is_covered",
    "is_normalizable",
    "is_plain",
    "load_fused_kernels",
]

_SOURCES = ("fused.c", "fused_pointwise.c", "fused_depthwise.c", "fused_dense.c")
_FLAGS = ("-O3", "-march=native", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_LANES = 16  # as in fused.c, at most
_KERNELS = (3, 5)
_STRIDES = (1, 2)

KINDS: Mapping[Activation, int] = MappingProxyType(
    {
        Activation.NONE: 0,
        Activation.RELU: 1,
        Activation.RELU6: 2,
        Activation.HARD_SWISH: 3,
        Activation.SWISH: 4,
    }
)
"""Activations that the library has, as in fused.c."""

_STORAGE: Mapping[torch.dtype, int] = MappingProxyType({torch.float32: 0, torch.bfloat16: 1})
"""Types of images, as in fused.c."""


class _Geometry(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("images", "channels", "height", "width", "out_height", "out_width")
    )


class Normalized(NamedTuple):
    """The output y [N, C, H, W] of a convolution, its batch norm [4, C], and an activation.

    They stand for activation(y * factor + offset); rows of the norm are mean, 1 / deviation, factor
    and offset. Without a norm y stands for itself.
    """

    y: Tensor
    norm: Tensor | None = None
    kind: int = 0


class Linked(NamedTuple):
    """A gradient g [N, C, H, W] of a normalised output and its link [4, C] to that of y.

    They stand for factor * g + across * (y - mean) + constant. Without a link g stands for itself.
    """

    g: Tensor
    y: Tensor
    link: Tensor | None = None


class Gradients(NamedTuple):
    """What a convolution's gradients are: of its input, of its weight and of the input's norm."""

    of_input: Linked | None
    weight: Tensor
    scale: Tensor | None
    shift: Tensor | None


class FusedKernels:
    """The functions of `fused*.c` on float32 tensors that are dense in channels-last order.

    Those of batch norms alone (`moments`, `normalize`, `normalize_backward`), and of depthwise
    convolutions without norms, take images of bfloat16 too; whatever else they take is float32.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, each [C], of y [N, C, H, W]."""
        mean, variance = torch.empty(y.shape[1]), torch.empty(y.shape[1])
        self._call("moments", y, _STORAGE[y.dtype], *_size(y), mean, variance)
        return mean, variance

    def normalize(
        self, y: Tensor, residual: Tensor | None, factor: Tensor, offset: Tensor, kind: int
    ) -> Tensor:
        """activation(y * factor + offset + residual), [N, C, H, W]."""
        z = torch.empty_like(y)
        self._call("normalize", y, residual, z, _STORAGE[y.dtype], factor, offset, *_size(y), kind)
        return z

    def finish(self, x: Normalized, residual: Tensor | None) -> Tensor:
        """What x stands for, plus the residual before the activation, [N, C, H, W]."""
        assert x.norm is not None
        return self.normalize(x.y, residual, x.norm[2], x.norm[3], x.kind)

    def normalize_backward(
        self, y: Tensor, dz: Tensor, vectors: tuple[Tensor, Tensor, Tensor, Tensor], kind: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of y, scale and shift; `vectors`: mean, 1 / deviation, scale, shift, [C]."""
        dy = torch.empty_like(y)
        dscale, dshift = torch.empty_like(vectors[0]), torch.empty_like(vectors[0])
        found = (*vectors, dscale, dshift)
        self._call("normalize_backward", y, dz, dy, _STORAGE[y.dtype], *found, *_size(y), kind)
        return dy, dscale, dshift

    def convolve(self, layer: Layer, x: Normalized, weight: Tensor) -> Tensor:
        """Convolve x with weight; the layer is one that `is_covered` tells."""
        y = _output(layer, x.y)
        self._convolve(layer, x, weight, y, (None, None, None), None)
        return y

    def convolve_normalized(
        self, layer: Layer, x: Normalized, weight: Tensor, affine: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Convolve x with weight; return the output and its norm, with scale and shift [C]."""
        y = _output(layer, x.y)
        norm = torch.empty(4, layer.out_channels)
        self._convolve(layer, x, weight, y, (norm, *affine), None)
        return y, norm

    def convolve_folded(
        self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Convolve, add bias [C] and residual, activate; depthwise ones take no residual."""
        y = _output(layer, x)
        self._convolve(layer, Normalized(x), weight, y, (None, None, bias), residual)
        return y

    def _convolve(
        self,
        layer: Layer,
        x: Normalized,
        weight: Tensor,
        y: Tensor,
        vectors: tuple[Tensor | None, Tensor | None, Tensor | None],
        residual: Tensor | None,
    ) -> None:
        kind = KINDS.get(layer.activation, 0)
        if layer.operator is Operator.POINTWISE:
            sizes = (*_size(x.y), layer.out_channels)
            outcome = (y, *vectors, EPSILON, residual, kind)
            self._call("pointwise", *x, _matrix(weight), *outcome, *sizes)
        elif layer.operator is Operator.CONV:
            outcome = (y, *vectors, EPSILON, residual, kind)
            windows = (_geometry(x.y, y), layer.out_channels, layer.kernel, layer.stride)
            self._call("dense", *x, _windows(weight), *outcome, *windows)
        else:
            window = (_geometry(x.y, y), layer.kernel, layer.stride)
            images = (x.y, _STORAGE[x.y.dtype], x.norm, x.kind)
            self._call("depthwise", *images, _taps(weight), y, *vectors, EPSILON, kind, *window)

    def convolve_backward(
        self,
        layer: Layer,
        dy: Linked,
        x: Normalized,
        weight: Tensor,
        residual: Tensor | None = None,
        *,
        of_input: bool = True,
    ) -> Gradients:
        """Gradients of a convolution; `residual` is added to that of an input without norm.

        Depthwise convolutions take no residual. Without `of_input` dense ones leave out that of the
        input, for which the first layer has no use.
        """
        dx = torch.empty_like(x.y) if of_input or layer.operator is not Operator.CONV else None
        norm = (None, None, None) if x.norm is None else _norm_gradients(x.norm)
        if layer.operator is Operator.POINTWISE:
            dweight = torch.empty(layer.out_channels, layer.in_channels)
            self._call(
                "pointwise_backward", *dy, *x, _matrix(weight), residual, dx, dweight, *norm,
                *_size(x.y), layer.out_channels,
            )  # fmt: skip
            dweight = dweight[:, :, None, None]
        elif layer.operator is Operator.CONV:
            windows = _windows(weight)
            dwindows = torch.empty_like(windows)
            self._call(
                "dense_backward", *dy, *x, windows, residual, dx, dwindows, *norm,
                _geometry(x.y, dy.g), layer.out_channels, layer.kernel, layer.stride,
            )  # fmt: skip
            dweight = dwindows.permute(0, 3, 1, 2)
        else:
            taps = _taps(weight)
            dtaps = torch.empty_like(taps)
            self._call(
                "depthwise_backward", dy.g, _STORAGE[dy.g.dtype], dy.y, dy.link, *x, taps, dx,
                dtaps, *norm, _geometry(x.y, dy.g), layer.kernel, layer.stride,
            )  # fmt: skip
            dweight = dtaps.permute(3, 2, 0, 1)
        linked = None if dx is None else Linked(dx, x.y, norm[0])
        return Gradients(linked, dweight, norm[1], norm[2])

    def _call(self, name: str, *arguments: Any) -> None:
        converted = [_argument(argument) for argument in arguments]
        if getattr(self._library, name)(*converted, torch.get_num_threads()):
            raise MemoryError(f"no memory for {name}")


@functools.cache
def load_fused_kernels() -> FusedKernels | None:
    """The library for this machine, compiled unless it is in the cache; None without a compiler."""
    folder = resources.files("bignas.supernet")
    source = b"".join(folder.joinpath(name).read_bytes() for name in _SOURCES)
    try:
        # what the compiler says of itself and of the processor
        traits = _compiler("-dM", "-E", "-x", "c", "/dev/null").stdout
        digest = hashlib.sha256(source + traits).hexdigest()[:16]
        path = cache_folder() / f"fused-{digest}.so"
        if not path.exists():
            write_atomically(path, _compiled(source))
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # damaged
            write_atomically(path, _compiled(source))
            library = ctypes.CDLL(str(path))
        return FusedKernels(library)
    except (OSError, subprocess.CalledProcessError, OutputError):
        return None


def _compiled(source: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="bignas-fused-") as folder:
        path = Path(folder, "fused.so")
        _compiler("-x", "c", "-", "-o", str(path), "-lm", source=source)
        return path.read_bytes()


def _compiler(*arguments: str, source: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = ["cc", *_FLAGS, *arguments]
    return subprocess.run(command, input=source, check=True, capture_output=True)


def is_covered(layer: Layer) -> bool:
    """Whether the C library has this convolution."""
    centred = layer.padding == layer.kernel // 2
    if layer.operator is Operator.DEPTHWISE:
        known = layer.kernel in _KERNELS and layer.stride in _STRIDES
        return known and centred and layer.in_channels >= _LANES
    return layer.operator is Operator.POINTWISE or (layer.operator is Operator.CONV and centred)


def _norm_gradients(norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the link [4, C] and the gradients of scale and shift [C]."""
    return torch.empty_like(norm), torch.empty_like(norm[0]), torch.empty_like(norm[0])


def _matrix(weight: Tensor) -> Tensor:
    """Weight [out, in, 1, 1] as [out, in]."""
    return weight.flatten(1).contiguous()


def _windows(weight: Tensor) -> Tensor:
    """Weight [out, in, k, k] as [out, k, k, in]."""
    return weight.permute(0, 2, 3, 1).contiguous()


def _taps(weight: Tensor) -> Tensor:
    """Weight [C, 1, k, k] as [k, k, 1, C]."""
    return weight.permute(2, 3, 1, 0).contiguous()


def _output(layer: Layer, x: Tensor) -> Tensor:
    """Room for the output of a convolution of x."""
    images, _, *sides = x.shape
    kept = [(one + 2 * layer.padding - layer.kernel) // layer.stride + 1 for one in sides]
    shape = (images, layer.out_channels, *kept)
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _geometry(x: Tensor, y: Tensor) -> _Geometry:
    return _Geometry(*x.shape, *y.shape[2:])


def is_chain(layers: Sequence[Layer], x: Tensor, residual: Tensor | None) -> bool:
    """Whether the library covers these convolutions of x, and the residual sum after the last."""
    covered = all(is_covered(one) and one.activation in KINDS for one in layers)
    pixels = len(x) * min(one.out_height * one.out_width for one in layers)
    plain = is_plain(x) and (residual is None or is_plain(residual))
    last = layers[-1]
    silent = residual is None or (
        last.operator is not Operator.DEPTHWISE and last.activation is Activation.NONE
    )
    return covered and plain and silent and pixels > 1


def is_plain(x: Tensor) -> bool:
    """Whether convolutions of the library take this tensor."""
    return x.dtype is torch.float32 and is_normalizable(x)


def is_normalizable(x: Tensor) -> bool:
    """Whether batch norms of the library take this tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype in _STORAGE
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _size(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[1], y.shape[1]


def _argument(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.byref(value) if isinstance(value, _Geometry) else ctypes.c_int64(value)
