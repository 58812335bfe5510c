"""The kernel table of a device: for each workload the best schedule found, and its latency."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bignas.compile.fusion import fuse_graph
from bignas.compile.graph import KernelGraph
from bignas.compile.schedule import Schedule, candidates
from bignas.device_db.device import Device
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash, runtime_version
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import agreeing_mean
from bignas.latency.remote import LOST

__all__ = [
    "FINAL_SAMPLES",
    "TunedKernel",
    "failed_kernels",
    "fuse_tuned",
    "kernel_table",
    "schedules_of",
    "schedules_or_guesses",
    "tuned_kernels",
]

FINAL_SAMPLES = 30  # and more: of a winner, measured for its latency; trials have fewer
TRIES = 2  # a kernel that failed in so many sessions is not tried again: the first may be chance


@dataclass(frozen=True, slots=True)
class TunedKernel:
    """A workload's best schedule and its latency in microseconds (median).

    It is the mean of those of the `medians_us` that agree; each is of so many `samples` or more.
    """

    schedule: Schedule
    latency_us: float
    samples: int
    medians_us: tuple[float, ...]


def tuned_kernels(store: Store, device: str) -> dict[Workload, TunedKernel]:
    """Return the kernels of a device that were measured with the present code and protocol.

    All candidates of a workload are measured briefly, the winner again and longer. The winner of a
    few noisy samples looks faster than it is, so a measurement of `FINAL_SAMPLES` always replaces a
    shorter one. Of several the mean counts, without those that were disturbed.
    """
    return best_kernels(store.kernel_measurements(device, code_hash=evidence_hash()))


def best_kernels(measurements: Iterable[Measurement]) -> dict[Workload, TunedKernel]:
    """Return the best schedule of each workload among measurements; failed ones do not count."""
    medians_us: dict[Workload, dict[str, dict[int, list[float]]]] = {}  # by samples, up to FINAL
    for item in measurements:
        if item.ok and item.workload is not None and item.schedule is not None:
            of_schedule = medians_us.setdefault(item.workload, {}).setdefault(item.schedule, {})
            samples = min(len(item.samples_ns), FINAL_SAMPLES)
            of_schedule.setdefault(samples, []).append(item.p50_ns / 1e3)
    return {workload: _best(schedules) for workload, schedules in medians_us.items()}


def _best(schedules: Mapping[str, Mapping[int, Sequence[float]]]) -> TunedKernel:
    """Return the fastest of the schedules that were measured longest; {text: {samples: us}}."""
    most = max(max(by_samples) for by_samples in schedules.values())
    entries = [
        (agreeing_mean(by_samples[most]), text, tuple(by_samples[most]))
        for text, by_samples in schedules.items()
        if most in by_samples
    ]
    latency_us, text, medians_us = min(entries)
    return TunedKernel(Schedule.from_text(text), latency_us, most, medians_us)


def failed_kernels(store: Store, device: str) -> dict[Workload, str]:
    """Return the kernels that no schedule can be had for, and the error of the last try.

    They failed in several sessions, all with the present kernel generators. That no server was left
    to measure them is no failure of theirs.
    """
    sessions: dict[Workload, dict[str, str]] = {}
    succeeded: set[Workload] = set()
    for item in store.kernel_measurements(device, code_hash=evidence_hash()):
        if item.workload is None:
            continue
        if item.error is None:
            succeeded.add(item.workload)
        elif not item.error.startswith(LOST):
            sessions.setdefault(item.workload, {})[item.session] = item.error
    return {
        workload: list(errors.values())[-1]
        for workload, errors in sessions.items()
        if workload not in succeeded and len(errors) >= TRIES
    }


def kernel_table(store: Store, device: str) -> KernelTable:
    """Return the latencies of the tuned kernels of a device."""
    kernels = tuned_kernels(store, device)
    latencies = {workload: entry.latency_us for workload, entry in kernels.items()}
    machine_digest = store.device(device).machine_digest
    return KernelTable(latencies, device, evidence_hash(), machine_digest, runtime_version())


def fuse_tuned(graph: KernelGraph, kernels: Mapping[Workload, TunedKernel]) -> KernelGraph:
    """Return the network with its blocks fused where the kernel table says that it pays."""
    return fuse_graph(graph, {one: entry.latency_us for one, entry in kernels.items()})


def schedules_of(kernels: Mapping[Workload, TunedKernel]) -> dict[Workload, Schedule]:
    """Return the schedule of each tuned kernel."""
    return {workload: entry.schedule for workload, entry in kernels.items()}


def schedules_or_guesses(
    workloads: Iterable[Workload], kernels: Mapping[Workload, TunedKernel], device: Device
) -> dict[Workload, Schedule]:
    """Return the schedule of each workload: the tuned one, else the model's best guess.

    For devices that cannot be measured on this machine.
    """
    return {
        one: kernels[one].schedule
        if one in kernels
        else candidates(one, device.target, device.threads)[0]
        for one in workloads
    }
