"""A network as the kernels that compute it, in the order in which they run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bignas.compile.fallback import FallbackKernel
from bignas.device_db.workload import BYTES_PER_VALUE, Workload

__all__ = ["INPUT", "Call", "FallbackCall", "KernelCall", "KernelGraph"]

INPUT = "input"  # name of the value that holds the network's input


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One kernel with its operands: names of values, and constant weights.

    `weights` are [out, in, k, k] (depthwise: [channels, 1, k, k]) and absent where the operator has
    none; `bias` is [out]; `other` names the residual or the gate of a squeeze-excite block.
    """

    workload: Workload
    input: str
    output: str
    other: str | None
    weights: np.ndarray | None
    bias: np.ndarray

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the values that the kernel reads."""
        return (self.input,) if self.other is None else (self.input, self.other)

    @property
    def output_floats(self) -> int:
        """Number of values of the output."""
        one = self.workload
        return one.out_height * one.out_width * one.out_channels


@dataclass(frozen=True, slots=True)
class FallbackCall:
    """One fallback kernel with its operands; those that `constants` holds are weights."""

    kernel: FallbackKernel
    operands: tuple[str, ...]
    output: str
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the values that the kernel reads."""
        return tuple(name for name in self.operands if name not in self.constants)

    @property
    def output_floats(self) -> int:
        """Number of values of the output."""
        return self.kernel.output_floats


Call = KernelCall | FallbackCall


@dataclass(frozen=True, slots=True)
class KernelGraph:
    """The kernels of a network; shapes lack the batch dimension of 1, the input's is NCHW."""

    calls: tuple[Call, ...]
    input_shape: tuple[int, int, int]
    output_size: int

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The workload of each call of a template; fallback kernels have none."""
        return tuple(call.workload for call in self.calls if isinstance(call, KernelCall))

    @property
    def weights_bytes(self) -> int:
        """The weights of its templates, without biases."""
        return sum(one.weight_count for one in self.workloads) * BYTES_PER_VALUE

    @property
    def memory_bytes(self) -> int:
        """What a run needs at least: the values that the greediest kernel touches, all weights."""
        channels, height, width = self.input_shape
        sizes = {INPUT: channels * height * width}
        touched = 0
        weights = 0
        for call in self.calls:
            scratch = sum(call.kernel.scratch) if isinstance(call, FallbackCall) else 0
            sizes[call.output] = call.output_floats
            names = {*call.reads, call.output}
            touched = max(touched, scratch + sum(sizes[name] for name in names))
            weights += _constant_floats(call)
        return (touched + weights) * BYTES_PER_VALUE

    @property
    def fallbacks(self) -> tuple[FallbackKernel, ...]:
        """The kernel of each call that goes through TVM's own scheduling."""
        return tuple(call.kernel for call in self.calls if isinstance(call, FallbackCall))


def _constant_floats(call: Call) -> int:
    if isinstance(call, FallbackCall):
        return sum(one.size for one in call.constants.values())
    return call.bias.size + (0 if call.weights is None else call.weights.size)
