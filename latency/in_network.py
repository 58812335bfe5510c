"""Measures kernels where they run: in networks with probes, one latency for each call.

A kernel that is measured by itself meets the caches as it would in a typical network. In a given
one its weights may come from farther away, its input may have left the cache, or another kernel's
code may be in its way. A look at the clock before each call of the network tells (runner/probes.h).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bignas.compile.graph import KernelCall, KernelGraph
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import Schedule
from bignas.device_db.measurement import Environment, Measurement
from bignas.device_db.workload import Workload
from bignas.latency.jobs import NetworkJob, TimingResult
from bignas.latency.recording import Recorder

__all__ = ["ProbedNetwork", "in_network_records"]


@dataclass(frozen=True, slots=True)
class ProbedNetwork:
    """A network whose kernels are measured where they run.

    `space` and `key` are what its records go by.
    """

    space: str
    key: str
    graph: KernelGraph

    def link(
        self, schedules: Mapping[Workload, Schedule], cache: ObjectCache, threads: int, path: Path
    ) -> NetworkJob:
        """Write its library with probes to a file; raises as `build_network` does."""
        network = build_network(self.graph, schedules, cache, threads, probed=True)
        path.write_bytes(network.library)
        return NetworkJob(path)


def in_network_records(
    network: ProbedNetwork,
    schedules: Mapping[Workload, Schedule],
    result: TimingResult,
    environment: Environment,
    recorder: Recorder,
) -> list[Measurement]:
    """Return a record of each call of a kernel; none of a network that could not be measured.

    Those of one process have the same moment. Of networks with fallback kernels, those are left
    out.
    """
    if not result.steps_ns:
        return []
    records = [
        recorder.in_network(
            (network.space, network.key),
            call.workload,
            schedules[call.workload],
            TimingResult(samples_ns, place=result.place),
            environment,
        )
        for call, samples_ns in zip(network.graph.calls, result.steps_ns, strict=True)
        if isinstance(call, KernelCall)
    ]
    return [replace(one, created_at=records[0].created_at) for one in records]
