"""Kernels against torch: what each should compute, and a way to call the built ones."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bignas.compile.inverted_bottleneck import parts_of
from bignas.compile.kernel_identity import symbol_of
from bignas.compile.library import aligned_floats
from bignas.compile.network import runtime_files
from bignas.compile.objects import ObjectCache
from bignas.compile.packing import count_read, pack_weights
from bignas.compile.schedule import Schedule, column_groups, task_count
from bignas.compile.toolchain import link_shared_library
from bignas.device_db.target import Target
from bignas.device_db.workload import Activation, Layout, Operator, Workload

Candidate = tuple[Workload, Schedule]

MARGIN = 64  # floats around each operand that a kernel must neither read nor write

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.NONE: lambda x: x,
    Activation.RELU: functional.relu,
    Activation.RELU6: functional.relu6,
    Activation.HARD_SWISH: functional.hardswish,
    Activation.SWISH: functional.silu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.HARD_SIGMOID: functional.hardsigmoid,
}


class _WinogradWeights(ctypes.Structure):
    """The struct of runner/winograd.h."""

    _fields_ = (
        ("stored", ctypes.c_void_p),
        ("transformed", ctypes.c_void_p),
        ("values", ctypes.c_size_t),
        ("side", ctypes.c_int),
    )


class Operands:
    """Random operands: the input is [in, h, w], `other` [out, h, w] or [out, 1, 1]."""

    def __init__(self, workload: Workload, seed: int = 0) -> None:
        random = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return (random.standard_normal(shape) * 2).astype(np.float32)

        one = workload
        fused = one.operator is Operator.INVERTED_BOTTLENECK
        inner = one.weight_count // (one.out_channels * one.kernel * one.kernel)
        self.workload = workload
        self.input = draw(one.in_channels, one.height, one.width)
        self.weights = draw(one.out_channels, inner, one.kernel, one.kernel) if inner else None
        if fused:
            self.weights = draw(one.weight_count) / 4
        self.bias = draw(one.bias_count)
        self.other: np.ndarray | None = None
        if one.residual and not fused:
            self.other = draw(one.out_channels, one.out_height, one.out_width)
        if one.operator is Operator.SCALE:
            self.other = draw(one.out_channels, 1, 1)

    def expected(self) -> np.ndarray:
        """Return torch's result in double precision, [out, h, w]."""
        one = self.workload
        x = torch.from_numpy(self.input).double()[None]
        if one.operator is Operator.INVERTED_BOTTLENECK:
            return np.asarray(self._layer_by_layer(x)[0].numpy())
        other = None if self.other is None else torch.from_numpy(self.other).double()
        if one.operator is Operator.GLOBAL_POOL:
            y = functional.adaptive_avg_pool2d(x, 1)
        elif one.operator is Operator.MAX_POOL:
            pad = 4 * [one.padding]  # torch's own padding is at most half a window
            y = functional.max_pool2d(functional.pad(x, pad, value=-np.inf), one.kernel, one.stride)
        elif one.operator is Operator.AVERAGE_POOL:
            y = functional.avg_pool2d(functional.pad(x, 4 * [one.padding]), one.kernel, one.stride)
        elif one.operator is Operator.SCALE:
            assert other is not None
            y = x * other
        else:
            groups = one.in_channels if one.operator is Operator.DEPTHWISE else 1
            weights = torch.from_numpy(self.weights).double()
            bias = torch.from_numpy(self.bias).double()
            y = functional.conv2d(x, weights, bias, one.stride, one.padding, groups=groups)
            if other is not None:
                y = y + other
        return np.asarray(ACTIVATIONS[one.activation](y)[0].numpy())

    def _layer_by_layer(self, x: Tensor) -> Tensor:
        """Return what the layers of an inverted bottleneck compute one after the other."""
        assert self.weights is not None
        y, weight, bias = x, 0, 0
        for layer in parts_of(self.workload):
            depthwise = layer.operator is Operator.DEPTHWISE
            shape = (layer.out_channels, -1, layer.kernel, layer.kernel)
            values = self.weights[weight : weight + layer.weight_count].reshape(shape)
            biases = self.bias[bias : bias + layer.bias_count]
            weight, bias = weight + layer.weight_count, bias + layer.bias_count
            y = functional.conv2d(
                y,
                torch.from_numpy(values).double(),
                torch.from_numpy(biases).double(),
                layer.stride,
                layer.padding,
                groups=layer.in_channels if depthwise else 1,
            )
            y = ACTIVATIONS[layer.activation](y + x if layer.residual else y)
        return y


class Kernels:
    """Built kernels of one target, linked to one library and loaded."""

    def __init__(self, candidates: Sequence[Candidate], cache: ObjectCache, folder: Path) -> None:
        self.target: Target = cache.target
        path = folder / "kernels.so"
        objects = {symbol_of(*one): cache.path(*one) for one in candidates}
        sources = runtime_files(("winograd.c", "winograd.h"))
        path.write_bytes(link_shared_library(sources, tuple(objects.values()), cache.target))
        self._library = ctypes.CDLL(str(path))

    def transformed(
        self, workload: Workload, schedule: Schedule, packed: np.ndarray, times: int = 1
    ) -> np.ndarray:
        """Return the weights that a kernel reads, as a network prepares them; `times` it asks."""
        read = np.full(count_read(workload, schedule), np.nan, np.float32)
        groups = []
        stored, place = packed.ctypes.data, read.ctypes.data
        lanes, patch = self.target.vector_lanes, schedule.winograd_side + 2
        for _, width in column_groups(workload.out_channels, lanes, schedule.vectors):
            values = workload.in_channels * width
            groups.append(_WinogradWeights(stored, place, values, schedule.winograd_side))
            stored += values * workload.kernel**2 * packed.itemsize
            place += values * patch**2 * read.itemsize
        state, all_groups = ctypes.c_int(0), (_WinogradWeights * len(groups))(*groups)
        for _ in range(times):
            self._library.winograd_prepare(ctypes.byref(state), all_groups, len(groups))
            packed[:] = np.nan
        return read

    def run(
        self, workload: Workload, schedule: Schedule, operands: Operands, threads: int = 1
    ) -> np.ndarray:
        """Return the kernel's result [out, h, w]; the margins of all operands stay as they were.

        The shares of several threads are computed one after the other, the last one first.
        """
        one = workload
        planar = one.input_layout is Layout.NCHW
        inputs = [operands.input if planar else operands.input.transpose(1, 2, 0)]
        if operands.weights is not None:
            packed = pack_weights(one, schedule, self.target.vector_lanes, operands.weights)
            if schedule.winograd_side:
                packed = self.transformed(one, schedule, packed)
            inputs += [packed, operands.bias]
        else:
            inputs += [np.zeros(0), np.zeros(0)]
        if one.scratch_count:
            inputs.append(np.full(one.scratch_count, np.nan))
        else:
            other = operands.other
            inputs.append(np.zeros(0) if other is None else other.transpose(1, 2, 0))
        shape = (one.out_height, one.out_width, one.out_channels)
        places = [_guarded(values) for values in inputs]
        output = _guarded(np.full(shape, np.nan, np.float32))
        function = getattr(self._library, symbol_of(one, schedule))
        pointers = [_pointer(place) for place in (*places, output)]
        tasks = task_count(one, schedule, self.target.vector_lanes)
        for thread in reversed(range(threads)):
            function(*pointers, tasks * thread // threads, tasks * (thread + 1) // threads)
        for place in (*places, output):
            assert np.isnan(place[:MARGIN]).all()
            assert np.isnan(place[-MARGIN:]).all()
        return output[MARGIN:-MARGIN].reshape(shape).transpose(2, 0, 1)


def _guarded(values: np.ndarray) -> np.ndarray:
    """Return values between margins that are not numbers, so that reading them shows."""
    place = aligned_floats(values.size + 2 * MARGIN)
    place[:] = np.nan
    place[MARGIN : MARGIN + values.size] = values.ravel()
    return place


def _pointer(place: np.ndarray) -> ctypes.c_void_p | None:
    if place.size == 2 * MARGIN:
        return None
    return ctypes.c_void_p(place.ctypes.data + MARGIN * place.itemsize)


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error in units of the largest expected value."""
    assert result.shape == expected.shape
    return float(np.abs(result - expected).max() / max(np.abs(expected).max(), 1e-6))
