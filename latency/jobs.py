"""What is measured, how, and what comes of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bignas.compile.plan import MOST_THREADS
from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import Environment
from bignas.device_db.workload import Workload

__all__ = [
    "CAREFUL",
    "NETWORK_SETTINGS",
    "Job",
    "KernelJob",
    "NetworkJob",
    "Place",
    "Progress",
    "Report",
    "Settings",
    "TimingResult",
    "of_processes",
]


@dataclass(frozen=True, slots=True)
class KernelJob:
    """A kernel in a shared library, and into how many tasks it is divided among threads.

    `weight_count` is that of its packed weights; None: as many as the workload has.
    """

    library: Path
    symbol: str
    workload: Workload
    tasks: int = 1
    weight_count: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """A whole network in a shared library with the interface of bignas.h.

    Of one with probes (`bignas.compile.network.build_network`) each call is timed too.
    """

    library: Path


Job = KernelJob | NetworkJob


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: rounds (samples a job), length of a sample, tolerated drift of the sentinels.

    That of the core is a change within a group of samples, that of the memory a slower stream.

    A measuring process that says nothing for `stall_seconds` hangs, and is killed. When more than a
    few samples stay disturbed to the end, all is measured again after a pause, up to `attempts`
    times in all, and the calmest attempt counts. So it is, for as many rounds as that seems to
    take, as long as the medians are less sure than `wanted_error` (standard error of the typical
    job as a share of its latency). Where it is not known yet what the sentinels can do, that is
    looked for during `find_seconds`.

    With `flush_bytes`, the size of a core's own cache, the weights of kernels are not in it when a
    call starts. Kernels run on `threads` threads; a network has its own, but needs as many cores.
    What the sentinels can do is remembered for each `anchor`, the kernel whose time shows how fast
    the core is; it has to be built for the same processor as the jobs. Without one it is a chain of
    dependent arithmetic.
    """

    rounds: int = 20
    sample_us: float = 50.0
    core_drift: float = 0.06
    memory_drift: float = 1.0
    seed: int = 1
    stall_seconds: float = 60.0
    attempts: int = 1
    wanted_error: float = math.inf
    find_seconds: float = 0.5
    flush_bytes: int = 0
    threads: int = 1
    anchor: KernelJob | None = None

    def __post_init__(self) -> None:
        lengths = (
            self.sample_us,
            self.core_drift,
            self.memory_drift,
            self.stall_seconds,
            self.wanted_error,
            self.find_seconds,
        )
        if min(self.rounds, self.attempts, self.threads) < 1 or not all(
            length > 0 for length in lengths
        ):
            raise MeasurementError(f"rounds, attempts, times and drifts must be positive: {self}")
        if self.threads > MOST_THREADS:
            raise MeasurementError(
                f"measuring with {self.threads} threads: networks have at most {MOST_THREADS}"
            )


CAREFUL = Settings(attempts=4, wanted_error=0.005, find_seconds=5.0)
"""For what latencies are predicted from, and what they are held to."""
NETWORK_SETTINGS = replace(CAREFUL, rounds=40, sample_us=500.0)
"""For whole networks, several together."""


def of_processes(settings: Settings, processes: int) -> Settings:
    """Return settings for one of several processes, whose medians together are sure enough."""
    return replace(settings, wanted_error=settings.wanted_error * math.sqrt(processes))


@dataclass(frozen=True, slots=True)
class Place:
    """The machine that a job ran on, where that is another one: name, runtime and what it did."""

    host: str
    runtime: str
    environment: Environment


@dataclass(frozen=True, slots=True)
class TimingResult:
    """Samples of one job in nanoseconds, or the error that came instead.

    `steps_ns` are those of the calls of a network with probes, in their order. `place` is None for
    the machine at hand; the report tells what that one was doing.
    """

    samples_ns: tuple[float, ...]
    error: str | None = None
    place: Place | None = None
    steps_ns: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Results of the jobs in their order; groups repeated, and samples of unsettled ones in use."""

    results: tuple[TimingResult, ...]
    rejected: int
    unsettled: int
    environment: Environment


Progress = Callable[[int, int, int], None]  # rounds done, rounds in all, groups rejected
