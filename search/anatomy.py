"""Where the time of a network goes: its kernels, and how near each comes to the device's roofline.

The roof is empirical: the highest rates of arithmetic and of memory traffic that any kernel in the
device's table reached. (Williams et al., "Roofline", CACM 52, 2009.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bignas.compile.inverted_bottleneck import parts_of
from bignas.device_db.workload import Operator, Workload
from bignas.latency.features import ROOFLINE_FEATURES, roofline_features
from bignas.latency.predictor import LatencyPredictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.layer import Layer

__all__ = ["KernelShare", "anatomy"]

_MACS = [
    ROOFLINE_FEATURES.index(f"{kind}_macs") for kind in ("dense", "pointwise", "depthwise", "fused")
]
_BYTES = ROOFLINE_FEATURES.index("bytes")


@dataclass(frozen=True, slots=True)
class KernelShare:
    """One kernel of a network; `roofline` is the share of the rate that the device could reach."""

    layer: str
    workload: str
    latency_us: float
    measured: bool  # otherwise estimated
    macs: int
    roofline: float


def anatomy(predictor: LatencyPredictor, architecture: Architecture) -> tuple[KernelShare, ...]:
    """Return the kernels of a network in the order in which they run."""
    known = roofline_features(list(predictor.table))
    known_us = np.array(list(predictor.table.values()))
    best_macs = float((known[:, _MACS].sum(axis=1) / known_us).max())
    best_bytes = float((known[:, _BYTES] / known_us).max())
    kernels = predictor.kernels(architecture)
    own = roofline_features([one.workload for one in kernels])
    ideal_us = np.maximum(own[:, _MACS].sum(axis=1) / best_macs, own[:, _BYTES] / best_bytes)
    names = _names(predictor.space.layers(architecture), [one.workload for one in kernels])
    return tuple(
        KernelShare(
            name,
            one.workload.key,
            one.latency_us,
            one.measured,
            one.workload.macs,
            min(1.0, float(ideal) / one.latency_us),
        )
        for name, one, ideal in zip(names, kernels, ideal_us, strict=True)
    )


def _names(layers: Sequence[Layer], kernels: Sequence[Workload]) -> list[str]:
    """Return what each kernel computes: a layer, or a fused block by the name of the block."""
    names: list[str] = []
    position = 0
    for kernel in kernels:
        fused = kernel.operator is Operator.INVERTED_BOTTLENECK
        name = layers[position].name
        names.append(name.rpartition(".")[0] if fused else name)
        position += len(parts_of(kernel)) if fused else 1
    return names
