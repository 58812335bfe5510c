"""A network as the kernels that compute it, in the order in which they run."""

from dataclasses import dataclass

import numpy as np

from bignas.device_db.records import Workload

__all__ = ["INPUT", "KernelCall", "KernelGraph"]

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


@dataclass(frozen=True, slots=True)
class KernelGraph:
    """The kernels of a network; shapes lack the batch dimension of 1, the input's is NCHW."""

    calls: tuple[KernelCall, ...]
    input_shape: tuple[int, int, int]
    output_size: int

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The workload of each call."""
        return tuple(call.workload for call in self.calls)
