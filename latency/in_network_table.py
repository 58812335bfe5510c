"""What kernels take within networks, by the size of the networks' weights.

Whether a kernel finds its weights in a core's own cache, in the shared one or in memory depends on
what the rest of the network reads between its calls: the same kernel took 59 us in a network that
reads 14 MB of weights and 67 us in one of 19 (docs/decisions.md, "Kernels are measured where they
run"). So what is known of a kernel is averaged over the networks that it was measured in, those of
similar size first: a kernel regression (Nadaraya, "On estimating regression", Theory of Probability
and its Applications 9, 1964).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.features import weight_bytes
from bignas.latency.in_network_readings import in_network_readings
from bignas.latency.tuned import TunedKernel

__all__ = ["InNetworkTable", "in_network_table"]

WIDTH_OCTAVES = 0.25  # of the weighting of networks by the size of their weights


@dataclass(frozen=True, slots=True)
class Reading:
    """A kernel in one network: the bytes of weights that one run of the network reads, and us."""

    network_bytes: int
    latency_us: float


@dataclass(frozen=True, slots=True)
class InNetworkTable:
    """Readings of kernels in networks, and how many bytes of weights each kernel reads."""

    readings: Mapping[Workload, Sequence[Reading]] = field(default_factory=dict)
    read_bytes: Mapping[Workload, int] = field(default_factory=dict)

    def latencies_us(self, kernels: Sequence[Workload]) -> list[float | None]:
        """Return what the kernels of one network take in it; None where there is no reading."""
        size = sum(self.read_bytes.get(one, weight_bytes(one)) for one in kernels)
        return [self._latency_us(one, size) for one in kernels]

    def _latency_us(self, kernel: Workload, network_bytes: int) -> float | None:
        readings = self.readings.get(kernel)
        if not readings:
            return None
        sizes = np.array([one.network_bytes for one in readings], dtype=np.float64)
        octaves = np.log2(np.maximum(sizes, 1) / max(network_bytes, 1)) / WIDTH_OCTAVES
        exponents = octaves**2 / 2
        weights = np.exp(exponents.min() - exponents)
        latencies_us = np.array([one.latency_us for one in readings])
        return float(np.average(latencies_us, weights=weights))


def in_network_table(
    store: Store, device: str, kernels: Mapping[Workload, TunedKernel]
) -> InNetworkTable:
    """Return what the tuned `kernels` of a device took in networks, measured with this code."""
    found = in_network_readings(store, device, kernels)
    readings: dict[Workload, list[Reading]] = {}
    for network in found.networks:
        for work, us in network.latencies_us.items():
            readings.setdefault(work, []).append(Reading(network.read_bytes, us))
    return InNetworkTable(readings, found.read_bytes)
