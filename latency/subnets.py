"""Measures whole subnets: linked from tuned kernels, each a binary like the one that ships."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bignas.compile.child_graph import graph_with_random_weights
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.device_db.device import Device
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.device_db.workload import BYTES_PER_VALUE, Workload
from bignas.latency.anchor import anchored
from bignas.latency.in_network import ProbedNetwork, in_network_records
from bignas.latency.jobs import (
    NETWORK_SETTINGS,
    Job,
    NetworkJob,
    Progress,
    Report,
    Settings,
    of_processes,
)
from bignas.latency.measuring import measure_on
from bignas.latency.metrics import agreeing_mean
from bignas.latency.process_effects import NetworkReading
from bignas.latency.recording import Recorder, space_label
from bignas.latency.repeatability import Repeatability
from bignas.latency.tuned import TunedKernel, fuse_tuned, schedules_of
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = [
    "by_network",
    "measure_subnets",
    "measured_subnets",
    "repeatability",
    "spread_sample",
    "subnet_measurements",
    "subnet_readings",
    "typical_weights_bytes",
]

LASTING_SECONDS = 60.0
LASTING_COUNT = 10


def measure_subnets(
    space: SearchSpace,
    architectures: Sequence[Architecture],
    kernels: Mapping[Workload, TunedKernel],
    device: Device,
    cache: ObjectCache,
    recorder: Recorder,
    settings: Settings = NETWORK_SETTINGS,
    progress: Progress | None = None,
    processes: int = 1,
    *,
    probed: bool = False,
) -> list[Measurement]:
    """Link and measure subnets together, interleaved, and return their records.

    With several `processes` all are measured in one after the other: the records of the first one,
    then those of the second. With `probed` the kernels of each are measured where they run too, in
    a second binary; their records come last. Each process loads them in a random order of its own
    (docs/decisions.md, "Networks are loaded in random order").

    Raises:
        KeyError: a kernel of a subnet is not tuned.
        MeasurementError, ToolchainError: measuring or linking is impossible on this machine.
    """
    schedules = schedules_of(kernels)
    networks: list[ProbedNetwork] = []
    with tempfile.TemporaryDirectory(prefix="bignas-subnets-") as folder:
        jobs: list[NetworkJob] = []
        for index, architecture in enumerate(architectures):
            graph = fuse_tuned(graph_with_random_weights(space, architecture, index), kernels)
            path = Path(folder) / f"subnet{index}.so"
            network = build_network(graph, schedules, cache, device.threads)
            path.write_bytes(network.library)
            jobs.append(NetworkJob(path))
            if probed:
                networks.append(ProbedNetwork(space_label(space), architecture.key, graph))
        jobs += [
            one.link(schedules, cache, device.threads, Path(folder) / f"probed{index}.so")
            for index, one in enumerate(networks)
        ]
        settings = of_processes(anchored(settings, device.target, device.threads), processes)
        reports = [_measure_shuffled(device, jobs, settings, progress) for _ in range(processes)]
    count = len(architectures)
    whole = [
        recorder.network(space, architecture, result, report.environment)
        for report in reports
        for architecture, result in zip(architectures, report.results[:count], strict=True)
    ]
    kernels_within = [
        record
        for report in reports
        for network, result in zip(networks, report.results[count:], strict=True)
        for record in in_network_records(network, schedules, result, report.environment, recorder)
    ]
    return whole + kernels_within


def _measure_shuffled(
    device: Device, jobs: Sequence[Job], settings: Settings, progress: Progress | None
) -> Report:
    """Measure jobs, listed in random order; return their results in the order that is given.

    Memory that a process gets last is less scattered than what it gets first: what is loaded last
    has fewer conflicts in a core's own cache.
    """
    order = np.random.default_rng().permutation(len(jobs)).tolist()
    report = measure_on(device, [jobs[place] for place in order], settings, progress)
    found = dict(zip(order, report.results, strict=True))
    return replace(report, results=tuple(found[place] for place in range(len(jobs))))


def typical_weights_bytes(space: SearchSpace) -> int:
    """Return the size of the weights of a middling subnet."""
    random = np.random.default_rng(0)
    params = [space.params(space.sample(random)) for _ in range(51)]
    return int(np.median(params)) * BYTES_PER_VALUE


def measured_subnets(
    store: Store, device: str, space: SearchSpace, code_hash: str
) -> list[tuple[Architecture, float]]:
    """Return the subnets measured with this code, with the mean of medians that agree, in ms."""
    found = subnet_measurements(store, device, space, code_hash)
    return [(architecture, agreeing_mean(medians_ms)) for architecture, medians_ms in found.items()]


def subnet_measurements(
    store: Store, device: str, space: SearchSpace, code_hash: str
) -> dict[Architecture, list[float]]:
    """Return all median latencies in ms of the subnets measured with this code."""
    return by_network(
        (one, one.latency_ms) for one in subnet_readings(store, device, space, code_hash)
    )


def subnet_readings(
    store: Store, device: str, space: SearchSpace, code_hash: str
) -> list[NetworkReading]:
    """Return what each process found for the subnets measured with this code."""
    records = store.network_measurements(device, space=space_label(space), code_hash=code_hash)
    return [NetworkReading.of(one, architecture_of(one)) for one in records if one.ok]


def by_network(
    readings: Iterable[tuple[NetworkReading, float]],
) -> dict[Architecture, list[float]]:
    """Gather the values that readings have been given by their networks."""
    found: dict[Architecture, list[float]] = {}
    for reading, value in readings:
        found.setdefault(reading.network, []).append(value)
    return found


def repeatability(store: Store, device: str, space: SearchSpace, code_hash: str) -> Repeatability:
    """Return by how much the same binary differs when it is measured again minutes later.

    From subnets measured twice with this code at least `LASTING_SECONDS` apart; not known when
    there are fewer than `LASTING_COUNT` of them.
    """
    records = store.network_measurements(device, space=space_label(space), code_hash=code_hash)
    found: dict[str, list[Measurement]] = {}
    for one in sorted((one for one in records if one.ok), key=lambda one: one.created_at):
        found.setdefault(one.architecture or "", []).append(one)
    repeated = [
        same
        for same in found.values()
        if (same[-1].created_at - same[0].created_at).total_seconds() >= LASTING_SECONDS
    ]
    if len(repeated) < LASTING_COUNT:
        return Repeatability()
    return Repeatability.of_differences(
        [math.sqrt(same[0].p50_ns * same[-1].p50_ns) / 1e6 for same in repeated],
        [math.log(same[-1].p50_ns / same[0].p50_ns) for same in repeated],
    )


def architecture_of(measurement: Measurement) -> Architecture:
    """Return the architecture of a network's record."""
    return Architecture.from_dict(json.loads(measurement.architecture or "null"))


def spread_sample(
    space: SearchSpace, count: int, random: np.random.Generator
) -> list[Architecture]:
    """Return architectures spread evenly over the range of MACs, both ends of the space included.

    Uniform sampling of each dimension crowds the middle, so mixtures with the ends are added, and
    of many samples those at even steps of log MACs are kept.
    """
    pool = [space.smallest(), space.biggest()]
    pool += [space.sample(random) for _ in range(8 * count)]
    pool += [_skewed(space, random, share) for share in np.linspace(0.05, 0.95, 4 * count)]
    unique = list(dict.fromkeys(pool))
    unique.sort(key=space.macs)
    if len(unique) <= count:
        return unique
    low, high = space.macs(unique[0]), space.macs(unique[-1])
    macs = np.log([space.macs(one) for one in unique])
    wanted = np.linspace(np.log(low), np.log(high), count)
    chosen: dict[int, None] = {}
    for value in wanted:
        order = np.argsort(np.abs(macs - value), kind="stable")
        chosen[next(int(index) for index in order if int(index) not in chosen)] = None
    return [unique[index] for index in chosen]


def _skewed(space: SearchSpace, random: np.random.Generator, share: float) -> Architecture:
    """Return a mix of two architectures: about `share` of the dimensions from a big one."""
    small, big = space.smallest(), space.biggest()
    sampled = space.sample(random)
    mixed = space.cross(small, big, random) if random.random() < 0.5 else sampled
    if random.random() < abs(share - 0.5) * 2:
        mixed = space.cross(mixed, big if share > 0.5 else small, random)
    return mixed
