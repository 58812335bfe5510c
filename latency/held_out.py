"""How far predictions of networks that nobody measured are off, from what has been measured so far.

Measured networks are predicted without themselves, by cross-validation. That alone would be too
kind: all kernels of a measured network are measured too, while a fresh one may have kernels that
were not. So as much of the held-out networks' kernels is forgotten as fresh ones lack, the kernels
that fresh networks use least first, as those are what profiling leaves out; then everything is
fitted again without them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bignas.compile.fusion import choose_kernels
from bignas.compile.workload import workloads
from bignas.device_db.workload import Workload
from bignas.latency.in_network_readings import InNetworkReadings
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.recording import space_label
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["FEWEST_NETWORKS", "held_out_error"]

Array = NDArray[np.float64]

FOLDS = 4
FEWEST_NETWORKS = 8  # below, an average error says nothing


def held_out_error(
    space: SearchSpace,
    table: KernelTable,
    networks: Sequence[tuple[Architecture, float]],
    weights: Mapping[Workload, float],
    unmeasured_share: float,
    sources: Sequence[KernelTable] = (),
    readings: InNetworkReadings | None = None,
) -> float | None:
    """Return the mean absolute percentage error to expect on fresh networks, as a fraction.

    networks: distinct architectures and their milliseconds; weights: how much each kernel counts
    in fresh networks; unmeasured_share: part of fresh networks' kernel sums that is estimated, from
    0 to 1; sources: tables of other devices, for kernels that are estimated; readings: what kernels
    took in networks. None when fewer than `FEWEST_NETWORKS` were measured.
    """
    if len(networks) < FEWEST_NETWORKS:
        return None
    label = space_label(space)
    whole: LatencyPredictor | None = None  # fitted when a fold needs it
    predicted_ms = np.zeros(len(networks))
    for fold in range(FOLDS):
        test = [one for one, _ in networks[fold::FOLDS]]
        train = [one for index, one in enumerate(networks) if index % FOLDS != fold]
        forgotten = _forgotten(space, table, test, weights, unmeasured_share)
        if forgotten:
            kept = {one: us for one, us in table.items() if one not in forgotten}
            rest = KernelTable(kept, table.device_name, table.code_hash)
            plain = LatencyPredictor.of_kernels(space, rest, sources=sources)
        else:
            whole = whole or LatencyPredictor.of_kernels(space, table, sources=sources)
            plain = whole
        left_out = {(label, one.key) for one in test}
        rest_of_readings = None if readings is None else readings.without(left_out)
        fitted = plain.corrected(train, readings=rest_of_readings)
        predicted_ms[fold::FOLDS] = fitted.predict(test).latency_ms
    return mape(predicted_ms, np.array([latency_ms for _, latency_ms in networks]))


def _forgotten(
    space: SearchSpace,
    table: KernelTable,
    networks: Sequence[Architecture],
    weights: Mapping[Workload, float],
    share: float,
) -> set[Workload]:
    """Return kernels of the networks that make up this share of their sums, least weight first.

    At least one kernel of the table is kept.
    """
    shares: dict[Workload, float] = {}
    for network in networks:
        kernels = choose_kernels(workloads(space, network), table)
        total_us = sum(table.get(one, 0.0) for one in kernels)
        for one in kernels:
            if one in table:
                part = table[one] / total_us / len(networks)
                shares[one] = shares.get(one, 0.0) + part
    found: set[Workload] = set()
    forgotten_share = 0.0
    for one in sorted(shares, key=lambda work: (weights.get(work, 0.0), work.key)):
        # the last one is forgotten when that comes nearer to the share than keeping it
        if forgotten_share + shares[one] / 2 > share or len(found) == len(table) - 1:
            break
        found.add(one)
        forgotten_share += shares[one]
    return found
