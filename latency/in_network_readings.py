"""What the kernels of measured networks took in them, as the store has it."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import fmean, median

import numpy as np

from bignas.compile.packing import count_read
from bignas.compile.schedule import Schedule
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.device_db.workload import BYTES_PER_VALUE, Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.tuned import TunedKernel

__all__ = ["InNetworkReadings", "NetworkKernels", "in_network_readings"]


@dataclass(frozen=True, slots=True)
class NetworkKernels:
    """The kernels of one network: the microseconds of each, averaged over its calls.

    One run of the network reads `read_bytes` of weights, and all its calls take `total_us`. Only
    kernels with their tuned schedules have latencies.
    """

    network: tuple[str, str]  # the label of its space, and the key of its architecture
    read_bytes: int
    total_us: float
    latencies_us: Mapping[Workload, float]

    def times(self, factor: float) -> "NetworkKernels":
        """Return the same network, slower by a factor."""
        latencies_us = {one: factor * us for one, us in self.latencies_us.items()}
        return replace(self, total_us=factor * self.total_us, latencies_us=latencies_us)


@dataclass(frozen=True, slots=True)
class InNetworkReadings:
    """Networks whose kernels were measured in them, and the bytes that tuned kernels read."""

    networks: Sequence[NetworkKernels]
    read_bytes: Mapping[Workload, int]  # of weights, in one run

    def scaled_to(self, latencies_us: Mapping[tuple[str, str], float]) -> "InNetworkReadings":
        """Return them such that a network's calls add up to what it takes, where that is given.

        What the process of a reading was off by is taken away with that.
        """
        return self._with(
            one.times(latencies_us[one.network] / one.total_us)
            if one.network in latencies_us
            else one
            for one in self.networks
        )

    def without(self, networks: Container[tuple[str, str]]) -> "InNetworkReadings":
        """Return those of other networks than these."""
        return self._with(one for one in self.networks if one.network not in networks)

    def _with(self, networks: Iterable[NetworkKernels]) -> "InNetworkReadings":
        return replace(self, networks=tuple(networks))


def in_network_readings(
    store: Store, device: str, kernels: Mapping[Workload, TunedKernel]
) -> InNetworkReadings:
    """Return what the tuned `kernels` of a device took in networks, measured with this code.

    In each network the median of all its processes, the mean of all its calls of a kernel in the
    runs that took as long as most (`_typical_us`). Calls with other schedules than the tuned ones
    tell nothing but the size of their network, and which of its runs those are.
    """
    runs: dict[tuple[str, str], dict[tuple[str, datetime], list[Measurement]]] = {}
    for item in store.in_network_measurements(device, code_hash=evidence_hash()):
        if item.ok and item.space is not None and item.architecture is not None:
            network = runs.setdefault((item.space, item.architecture), {})
            network.setdefault((item.session, item.created_at), []).append(item)
    networks = [
        _of_processes(network, list(processes.values()), kernels)
        for network, processes in runs.items()
    ]
    read_bytes = {work: _read_bytes(work, entry.schedule) for work, entry in kernels.items()}
    return InNetworkReadings(networks, read_bytes)


def _read_bytes(workload: Workload, schedule: Schedule) -> int:
    return BYTES_PER_VALUE * count_read(workload, schedule)


def _of_processes(
    network: tuple[str, str],
    processes: Sequence[Sequence[Measurement]],
    kernels: Mapping[Workload, TunedKernel],
) -> NetworkKernels:
    """Return a network by the calls that each process measured."""
    found: dict[Workload, list[float]] = {}
    totals_us = []
    for calls in processes:
        typical_us = _typical_us(calls)
        totals_us.append(sum(typical_us))
        for work, us in _latencies_us(calls, typical_us, kernels).items():
            found.setdefault(work, []).append(us)
    return NetworkKernels(
        network,
        read_bytes=sum(
            _read_bytes(item.workload, Schedule.from_text(item.schedule))
            for item in processes[0]
            if item.workload is not None and item.schedule is not None
        ),
        total_us=median(totals_us),
        latencies_us={work: median(values) for work, values in found.items()},
    )


def _latencies_us(
    calls: Sequence[Measurement],
    typical_us: Sequence[float],
    kernels: Mapping[Workload, TunedKernel],
) -> dict[Workload, float]:
    """Return the mean of a process's calls of each kernel, of those with the tuned schedule."""
    found: dict[Workload, list[float]] = {}
    for item, us in zip(calls, typical_us, strict=True):
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
