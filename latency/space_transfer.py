"""Transfer for a search space of our own: from predictors of known devices to a new device."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.workload import Workload
from bignas.latency.features import KernelEstimates
from bignas.latency.network_sums import SpaceSums
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.transfer_prior import TransferProblem
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["space_problem"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def space_problem(
    space: SearchSpace, architectures: Sequence[Architecture], sources: Sequence[LatencyPredictor]
) -> TransferProblem:
    """Describe architectures of a space, with what predictors of known devices say about them.

    Features are one-hot choices, estimates are MACs, traffic, weights and number of kernels.
    Raises InputError for a predictor of another space.
    """
    features, partitions = _choices(architectures)
    known = [one.for_space(space).predict(architectures).latency_ms for one in sources]
    sums = SpaceSums(space, _unit_latencies, tuple)(architectures)
    return TransferProblem(
        features=features,
        partitions=partitions,
        sources_ms=np.array(known).reshape(len(known), len(architectures)),
        estimates=np.array([sums.macs, sums.traffic_bytes, sums.weight_bytes, sums.kernels]),
    )


def _unit_latencies(workloads: Sequence[Workload]) -> KernelEstimates:
    """Only counts of what kernels do are asked for, not what they take."""
    return KernelEstimates(np.ones(len(workloads)), np.zeros(len(workloads), dtype=np.bool_))


def _choices(architectures: Sequence[Architecture]) -> tuple[Array, tuple[Integers, ...]]:
    """One column for each value of each choice; partitions by kind and value, and by choice."""
    rows = [_chosen(one) for one in architectures]
    columns, kinds, choices = [], [], []
    for number, (choice, kind) in enumerate(rows[0]):
        values = np.array([row[choice, kind] for row in rows])
        for value in np.unique(values):
            columns.append((values == value).astype(np.float64))
            kinds.append(f"{kind} {value}")
            choices.append(number)
    kind_numbers = np.unique(kinds, return_inverse=True)[1].astype(np.int64)
    return np.column_stack(columns), (kind_numbers, np.array(choices, dtype=np.int64))


def _chosen(architecture: Architecture) -> dict[tuple[int, str], int]:
    """What was chosen, by stage and kind; -1 stands for the network as a whole."""
    chosen = {
        (-1, "resolution"): architecture.resolution,
        (-1, "stem"): architecture.stem_channels,
        (-1, "head"): architecture.head_channels,
    }
    for index, stage in enumerate(architecture.stages):
        chosen[index, "channels"] = stage.channels
        chosen[index, "depth"] = stage.depth
        chosen[index, "kernel"] = stage.kernel
        chosen[index, "expand"] = stage.expand
    return chosen
