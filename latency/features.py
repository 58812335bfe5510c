"""What the latency of a kernel depends on, as numbers.

Every column has a name that can be read aloud, for the report and for the one who debugs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.workload import BYTES_PER_VALUE, Activation, Layout, Operator, Workload

__all__ = [
    "KERNEL_FEATURES",
    "ROOFLINE_FEATURES",
    "KernelEstimates",
    "kernel_features",
    "roofline_features",
    "traffic_bytes",
    "weight_bytes",
]

Array = NDArray[np.float64]

_OPERATORS = tuple(Operator)
_LANES = (8, 16)  # vector widths whose remainders cost time
_CHEAP_ACTIVATIONS = (Activation.NONE, Activation.RELU, Activation.RELU6)

ROOFLINE_FEATURES = (
    "constant", "dense_macs", "pointwise_macs", "depthwise_macs", "fused_macs", "bytes",
)  # fmt: skip

KERNEL_FEATURES = (
    "log_macs",
    "log_input_bytes",
    "log_output_bytes",
    "log_weight_bytes",
    "log_out_pixels",
    "log_in_channels",
    "log_out_channels",
    "log_hidden_channels",
    "log_macs_per_byte",
    "out_width",
    "kernel",
    "stride",
    "residual",
    "input_nchw",
    "costly_activation",
    *(f"in_channel_waste_{lanes}" for lanes in _LANES),
    *(f"out_channel_waste_{lanes}" for lanes in _LANES),
    *(f"is_{operator}" for operator in _OPERATORS),
)


def roofline_features(workloads: Sequence[Workload]) -> Array:
    """Rows [n, len(ROOFLINE_FEATURES)]: what an ideal processor's time is a sum of."""
    rows = [
        (
            1.0,
            work.macs if work.operator is Operator.CONV else 0,
            work.macs if work.operator is Operator.POINTWISE else 0,
            work.macs if work.operator is Operator.DEPTHWISE else 0,
            work.macs if work.operator is Operator.INVERTED_BOTTLENECK else 0,
            traffic_bytes(work),
        )
        for work in workloads
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(ROOFLINE_FEATURES))


def kernel_features(workloads: Sequence[Workload]) -> Array:
    """Rows [n, len(KERNEL_FEATURES)] of features of single kernels."""
    rows = [_kernel_row(work) for work in workloads]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(KERNEL_FEATURES))


def _kernel_row(work: Workload) -> list[float]:
    return [
        np.log1p(work.macs),
        np.log(_input_bytes(work)),
        np.log(_output_bytes(work)),
        np.log1p(weight_bytes(work)),
        np.log(work.out_height * work.out_width),
        np.log(work.in_channels),
        np.log(work.out_channels),
        np.log1p(work.hidden_channels),
        np.log1p(work.macs / traffic_bytes(work)),
        work.out_width,
        work.kernel,
        work.stride,
        work.residual,
        work.input_layout is Layout.NCHW,
        work.activation not in _CHEAP_ACTIVATIONS,
        *(_waste(work.in_channels, lanes) for lanes in _LANES),
        *(_waste(work.out_channels, lanes) for lanes in _LANES),
        *(work.operator is operator for operator in _OPERATORS),
    ]


def _waste(channels: int, lanes: int) -> float:
    """Idle share of the vector lanes when channels are rounded up to whole vectors."""
    return 1 - channels / (-(-channels // lanes) * lanes)


def _input_bytes(work: Workload) -> int:
    return work.height * work.width * work.in_channels * BYTES_PER_VALUE


def _output_bytes(work: Workload) -> int:
    """Bytes written, and read too for the residual."""
    size = work.out_height * work.out_width * work.out_channels * BYTES_PER_VALUE
    return 2 * size if work.residual else size


def weight_bytes(work: Workload) -> int:
    """Bytes of a kernel's weights as the network has them."""
    return work.weight_count * BYTES_PER_VALUE


def traffic_bytes(work: Workload) -> int:
    """Bytes that a kernel reads and writes, each once."""
    return _input_bytes(work) + _output_bytes(work) + weight_bytes(work)


@dataclass(frozen=True, eq=False)
class KernelEstimates:
    """Latencies of kernels in microseconds, and which of them were measured (else estimated)."""

    latency_us: Array
    measured: NDArray[np.bool_]
