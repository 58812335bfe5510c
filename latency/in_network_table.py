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
from datetime import datetime
from statistics import fmean, median
from typing import Any, Self

import numpy as np

from bignas.compile.packing import count_read
from bignas.compile.schedule import Schedule
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.device_db.workload import BYTES_PER_VALUE, Workload
from bignas.latency.evidence import evidence_hash
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
        size = sum(self.read_bytes.get(one, BYTES_PER_VALUE * one.weight_count) for one in kernels)
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

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, in the order of the kernels' keys."""
        return {
            work.key: {
                "read_bytes": self.read_bytes[work],
                "readings": [[one.network_bytes, one.latency_us] for one in self.readings[work]],
            }
            for work in sorted(self.readings, key=lambda one: one.key)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises KeyError, TypeError, ValueError, BignasError."""
        works = {key: Workload.from_key(key) for key in values}
        return cls(
            readings={
                works[key]: [Reading(int(size), float(us)) for size, us in one["readings"]]
                for key, one in values.items()
            },
            read_bytes={works[key]: int(one["read_bytes"]) for key, one in values.items()},
        )


def in_network_table(
    store: Store, device: str, kernels: Mapping[Workload, TunedKernel]
) -> InNetworkTable:
    """Return what the tuned `kernels` of a device took in networks, measured with this code.

    In each network the median of all its processes, the mean of all its calls of a kernel in the
    runs that took as long as most (`_typical_us`). Calls with other schedules than the tuned ones
    tell nothing but the size of their network, and which of its runs those are.
    """
    runs: dict[str, dict[tuple[str, datetime], list[Measurement]]] = {}
    for item in store.in_network_measurements(device, code_hash=evidence_hash()):
        if item.ok and item.architecture is not None:
            network = runs.setdefault(item.architecture, {})
            network.setdefault((item.session, item.created_at), []).append(item)
    readings: dict[Workload, list[Reading]] = {}
    read_bytes: dict[Workload, int] = {}
    for processes in runs.values():
        found: dict[Workload, list[float]] = {}
        for calls in processes.values():
            for work, us in _latencies_us(calls, kernels).items():
                found.setdefault(work, []).append(us)
        size = _read_bytes(next(iter(processes.values())))
        for work, values in found.items():
            readings.setdefault(work, []).append(Reading(size, median(values)))
            read_bytes[work] = _bytes_of(work, kernels[work].schedule)
    return InNetworkTable(readings, read_bytes)


def _latencies_us(
    calls: Sequence[Measurement], kernels: Mapping[Workload, TunedKernel]
) -> dict[Workload, float]:
    """Return the mean of a process's calls of each kernel, of those with the tuned schedule."""
    found: dict[Workload, list[float]] = {}
    for item, us in zip(calls, _typical_us(calls), strict=True):
        work = item.workload
        if work is None or work not in kernels:
            continue
        if item.schedule == kernels[work].schedule.to_text():
            found.setdefault(work, []).append(us)
    return {work: fmean(values) for work, values in found.items()}


def _typical_us(calls: Sequence[Measurement]) -> list[float]:
    """Return what each call of a network took on average in the middle half of its runs.

    That is, in those whose calls together took longer than in a quarter of the runs, and not
    longer than in another quarter. Averages over the same runs add up to what the network took;
    medians of each call by itself leave out what disturbs another call in each run. These are
    what is returned where calls have different numbers of samples, so that runs cannot be told.
    """
    if len({len(item.samples_ns) for item in calls}) > 1:
        return [item.p50_ns / 1e3 for item in calls]
    runs_us = np.array([item.samples_ns for item in calls]) / 1e3
    totals_us = runs_us.sum(axis=0)
    lowest, highest = np.quantile(totals_us, [0.25, 0.75])
    typical = (lowest <= totals_us) & (totals_us <= highest)
    return [float(us) for us in runs_us[:, typical].mean(axis=1)]


def _read_bytes(calls: Sequence[Measurement]) -> int:
    """Return the bytes of weights that one run of a network reads, given all its calls."""
    return sum(
        _bytes_of(item.workload, Schedule.from_text(item.schedule))
        for item in calls
        if item.workload is not None and item.schedule is not None
    )


def _bytes_of(workload: Workload, schedule: Schedule) -> int:
    return BYTES_PER_VALUE * count_read(workload, schedule)
