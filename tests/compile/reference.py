"""Kernels against torch: what each should compute, and a way to call the built ones."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bignas.compile.codegen import pack_weights, symbol_of
from bignas.compile.library import aligned_floats
from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import Schedule
from bignas.compile.toolchain import link_shared_library
from bignas.device_db.records import Activation, Layout, Operator, Target, Workload

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


class Operands:
    """Random operands: the input is [in, h, w], `other` [out, h, w] or [out, 1, 1]."""

    def __init__(self, workload: Workload, seed: int = 0) -> None:
        random = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return (random.standard_normal(shape) * 2).astype(np.float32)

        one = workload
        inner = one.weight_count // (one.out_channels * one.kernel * one.kernel)
        self.workload = workload
        self.input = draw(one.in_channels, one.height, one.width)
        self.weights = draw(one.out_channels, inner, one.kernel, one.kernel) if inner else None
        self.bias = draw(one.out_channels)
        self.other: np.ndarray | None = None
        if one.residual:
            self.other = draw(one.out_channels, one.out_height, one.out_width)
        if one.operator is Operator.SCALE:
            self.other = draw(one.out_channels, 1, 1)

    def expected(self) -> np.ndarray:
        """Return torch's result in double precision, [out, h, w]."""
        one = self.workload
        x = torch.from_numpy(self.input).double()[None]
        other = None if self.other is None else torch.from_numpy(self.other).double()
        if one.operator is Operator.GLOBAL_POOL:
            y = functional.adaptive_avg_pool2d(x, 1)
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


class Kernels:
    """Built kernels of one target, linked to one library and loaded."""

    def __init__(self, candidates: Sequence[Candidate], cache: ObjectCache, folder: Path) -> None:
        self.target: Target = cache.target
        path = folder / "kernels.so"
        objects = {symbol_of(*one): cache.path(*one) for one in candidates}
        path.write_bytes(link_shared_library({}, tuple(objects.values()), cache.target))
        self._library = ctypes.CDLL(str(path))

    def run(self, workload: Workload, schedule: Schedule, operands: Operands) -> np.ndarray:
        """Return the kernel's result [out, h, w]; the margins of all operands stay as they were."""
        one = workload
        planar = one.input_layout is Layout.NCHW
        inputs = [operands.input if planar else operands.input.transpose(1, 2, 0)]
        if operands.weights is not None:
            lanes = self.target.vector_lanes
            inputs += [pack_weights(one, schedule, lanes, operands.weights), operands.bias]
        else:
            inputs += [np.zeros(0), np.zeros(0)]
        inputs.append(np.zeros(0) if operands.other is None else operands.other.transpose(1, 2, 0))
        shape = (one.out_height, one.out_width, one.out_channels)
        places = [_guarded(values) for values in inputs]
        output = _guarded(np.full(shape, np.nan, np.float32))
        function = getattr(self._library, symbol_of(one, schedule))
        function(*(_pointer(place) for place in places), _pointer(output))
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
