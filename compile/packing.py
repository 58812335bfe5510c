"""The order in which kernels read their weights: group by group of output channels.

The loop nests of `compile/kernels` and the functions here agree on it, operator by operator.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from bignas.compile.inverted_bottleneck import parts_of, schedules_of_parts
from bignas.compile.schedule import Schedule, column_groups
from bignas.compile.winograd import transformed_count
from bignas.device_db.workload import Operator, Workload

__all__ = ["count_read", "pack_weights"]


def pack_weights(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Return weights [out, in, k, k] as the kernel reads them: float32, flat.

    Those of a fused block are given layer by layer, each flat. Operators without weights have none.
    What a convolution by Winograd's algorithm reads is made of them by the program
    (runner/winograd.c), group by group.
    """
    pack = _PACKS.get(workload.operator)
    if pack is None:
        return np.zeros(0, np.float32)
    return np.ascontiguousarray(pack(workload, schedule, lanes, weights), np.float32)


def count_read(workload: Workload, schedule: Schedule) -> int:
    """Return the number of weights that the kernel reads."""
    if schedule.winograd_side:
        return transformed_count(workload, schedule.winograd_side)
    return workload.weight_count


def _pack_pointwise(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Pack weights [out, in, 1, 1] as [group][in][channel of the group], flat."""
    matrix = weights.reshape(workload.out_channels, workload.in_channels)
    groups = column_groups(workload.out_channels, lanes, schedule.vectors)
    return np.concatenate([matrix[start : start + width].T.ravel() for start, width in groups])


def _pack_conv(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Pack weights [out, in, k, k] as [group][window row][in][window column][channel], flat.

    Those to be transformed as [group][window row][window column][in][channel].
    """
    groups = column_groups(workload.out_channels, lanes, schedule.vectors)
    order = (2, 3, 1, 0) if schedule.winograd_side else (2, 1, 3, 0)
    return np.concatenate(
        [weights[start : start + width].transpose(order).ravel() for start, width in groups]
    )


def _pack_depthwise(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Pack weights [channels, 1, k, k] as [group][window row][window column][channel], flat."""
    groups = column_groups(workload.out_channels, lanes, schedule.vectors)
    return np.concatenate(
        [weights[start : start + width, 0].transpose(1, 2, 0).ravel() for start, width in groups]
    )


def _pack_bottleneck(
    workload: Workload, schedule: Schedule, lanes: int, weights: np.ndarray
) -> np.ndarray:
    """Pack the layers' weights, given one after the other and flat, each as its layer's kernel."""
    packed = []
    start = 0
    schedules = schedules_of_parts(workload, schedule)
    for layer, plan in zip(parts_of(workload), schedules, strict=True):
        count = layer.weight_count
        shape = (layer.out_channels, -1, layer.kernel, layer.kernel)
        values = weights[start : start + count].reshape(shape)
        start += count
        packed.append(_PACKS[layer.operator](layer, plan, lanes, values))
    return np.concatenate(packed)


_PACKS: Mapping[Operator, Callable[[Workload, Schedule, int, np.ndarray], np.ndarray]] = (
    MappingProxyType(
        {
            Operator.POINTWISE: _pack_pointwise,
            Operator.CONV: _pack_conv,
            Operator.DEPTHWISE: _pack_depthwise,
            Operator.INVERTED_BOTTLENECK: _pack_bottleneck,
        }
    )
)
