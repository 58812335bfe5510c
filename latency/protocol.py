"""The measurement protocol: what makes two latencies comparable.

- Measuring happens in a native process of its own (latency/harness.c), pinned to one core: a kernel
  that crashes or hangs costs that process, and becomes a failed result.
- Candidates are interleaved round by round in random order, so that drift hits all alike
  (google/benchmark's random interleaving, docs/random_interleaving.md).
- Two sentinels run around each group of samples: the anchor, a fixed kernel for the same processor
  as what is measured (latency/anchor.py), which shows how fast the core is, and a stream through
  the shared cache, which shows other users of it. Groups during which the core changed or was much
  slower than it can be, or that need the shared cache while that is slower than it can be, are
  repeated, in later rounds too. Samples are never judged by their own length, so their quantiles
  stay honest.
- Cores get faster and slower in steps of a few percent with what else a processor does. Samples are
  given at one reference, by the anchor around them: what the core does under such load when it is
  left alone, found by the first process and remembered from process to process.
- What differs too much from round to round is measured again, for more rounds
  (`Settings.wanted_error`).
- A kernel is measured in the state of the caches that it will meet: when the weights of its network
  exceed the core's own cache (`Settings.flush_bytes`), they come from the shared one.
- The measuring program is the same on every machine; a `Program` tells how it is started on one.
- Every sample is kept, at that reference, and so is what the machine was doing meanwhile.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil

from bignas.compile.kernel_identity import code_hash
from bignas.compile.network import THREADS_OF_LIBRARY, runtime_files
from bignas.compile.plan import MOST_THREADS
from bignas.compile.toolchain import link_program
from bignas.device_db.errors import MeasurementError
from bignas.device_db.files import cache_folder, write_atomically
from bignas.device_db.probe import probe_local
from bignas.device_db.records import Environment, Operator, Target, Workload
from bignas.latency.machine import USUAL_CACHE_BYTES, parse_cache_size

__all__ = [
    "CAREFUL",
    "Job",
    "KernelJob",
    "NetworkJob",
    "Place",
    "Program",
    "Report",
    "Sentinels",
    "Settings",
    "TimingResult",
    "build_harness",
    "ended_when_silent",
    "evidence_hash",
    "job_lines",
    "measure",
    "measure_with",
    "of_processes",
    "references_of",
    "setting_lines",
]

PROTOCOL = 6  # of measuring: latencies by another one are no evidence beside those by this one
SILENT = "no progress"
ENDING_SECONDS = 10.0  # for a process to end in order
WATCH_SECONDS = 0.5  # between looks whether a process has to be ended
UNSETTLED_SHARE = 0.05  # of the samples may stay disturbed before all is measured again
FORGET_SECONDS = 3600.0  # after which a reference that is not reached gives way to a slower one
MUCH_FASTER = 0.9  # of the reference: no rounding, but what the measuring program found far
MOST_ROUNDS = 16  # of an attempt, for one of the first
ERROR_BLOCKS = 8  # of rounds, whose medians tell how sure a median is
PAUSE_SECONDS = 1.0  # before that: disturbances on shared machines last for seconds


@dataclass(frozen=True, slots=True)
class KernelJob:
    """A kernel in a shared library, and into how many tasks it is divided among threads."""

    library: Path
    symbol: str
    workload: Workload
    tasks: int = 1


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


CAREFUL = Settings(attempts=4, wanted_error=0.01, find_seconds=5.0)
"""For what latencies are predicted from, and what they are held to."""


def of_processes(settings: Settings, processes: int) -> Settings:
    """Return settings for one of several processes, whose medians together are sure enough."""
    return replace(settings, wanted_error=settings.wanted_error * math.sqrt(processes))


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """A whole network in a shared library with the interface of bignas.h."""

    library: Path


Job = KernelJob | NetworkJob


@dataclass(frozen=True, slots=True)
class Place:
    """The machine that a job ran on, where that is another one: name, runtime and what it did."""

    host: str
    runtime: str
    environment: Environment


@dataclass(frozen=True, slots=True)
class TimingResult:
    """Samples of one job in nanoseconds, or the error that came instead.

    `place` is None for the machine at hand; the report tells what that one was doing.
    """

    samples_ns: tuple[float, ...]
    error: str | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Results of the jobs in their order; groups repeated, and samples of unsettled ones in use."""

    results: tuple[TimingResult, ...]
    rejected: int
    unsettled: int
    environment: Environment


Progress = Callable[[int, int, int], None]  # rounds done, rounds in all, groups rejected


class Program(Protocol):
    """The measuring program (harness.c) as it is started on one machine.

    `command` starts it from here. In `references` is remembered what the sentinels can do on the
    machine. A process that says nothing for `patience_seconds` is killed.
    """

    @property
    def command(self) -> tuple[str, ...]: ...  # noqa: D102 - see above

    @property
    def references(self) -> Path: ...  # noqa: D102

    @property
    def patience_seconds(self) -> float: ...  # noqa: D102

    def script(self, jobs: Sequence[Job], settings: Settings, sentinels: "Sentinels") -> str:
        """Return what the command is to read."""
        ...

    def heed(self, line: str) -> None:
        """Take notice of a line that the process wrote, before it is taken for a result."""
        ...

    def ending(self, status: int, silent: bool) -> str:
        """Return why the process ended without its results, with exit status or as it was silent.

        Raises:
            MeasurementError: that is no job's fault.
        """
        ...

    def environment(self, switches: int) -> Environment:
        """Return what the machine was doing meanwhile; `switches` are those of contexts."""
        ...


def measure(jobs: Sequence[Job], settings: Settings, progress: Progress | None = None) -> Report:
    """Measure jobs on this machine, as `measure_with` does.

    Raises:
        MeasurementError: the measuring process fails for a reason that is no job's fault.
        ToolchainError: the C compiler is missing or fails.
    """
    return measure_with(_LocalProgram(settings), jobs, settings, progress)


def measure_with(
    program: Program,
    jobs: Sequence[Job],
    settings: Settings,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> Report:
    """Measure jobs together; a job that crashes or hangs gets an error and the others are repeated.

    Once `cancelled` is set the measuring process is ended, which is a MeasurementError.

    Raises:
        MeasurementError: the measuring process fails for a reason that is no job's fault.
    """
    failures: dict[int, str] = {}
    cancelled = cancelled or threading.Event()
    calmest: _Outcome | None = None
    left, wanted = settings.attempts, settings
    while left:
        remaining = [index for index in range(len(jobs)) if index not in failures]
        chosen = [jobs[index] for index in remaining]
        outcome = _run(program, chosen, wanted, progress, cancelled)
        failures |= {remaining[index]: text for index, text in outcome.errors.items()}
        if outcome.culprit is not None:
            failures[remaining[outcome.culprit]] = outcome.reason
            calmest = None
            continue
        outcome.samples = {remaining[index]: one for index, one in outcome.samples.items()}
        if calmest is None or outcome.disturbance < calmest.disturbance:
            calmest = outcome
        left -= 1
        rounds = _rounds_needed(calmest.typical_error, settings)
        if calmest.unsettled_share <= UNSETTLED_SHARE and rounds <= wanted.rounds:
            break
        wanted = replace(wanted, rounds=max(rounds, wanted.rounds))
        if left and outcome.unsettled_share > UNSETTLED_SHARE:
            time.sleep(PAUSE_SECONDS)
    assert calmest is not None
    if calmest.measured:
        reached = calmest.unsettled < calmest.measured
        Sentinels.recall(program.references).remember(program.references, calmest.found, reached)
    results = [TimingResult((), failures.get(index, "not measured")) for index in range(len(jobs))]
    for index, samples in calmest.samples.items():
        if index not in failures:
            results[index] = TimingResult(samples)
    environment = program.environment(calmest.switches)
    return Report(tuple(results), calmest.rejected, calmest.unsettled, environment)


@dataclass(frozen=True, slots=True)
class Sentinels:
    """What the sentinels read on this machine; 0: not known.

    The core's is a reference that everything is measured at, the memory's the best that was seen.
    `reached_at` is when a process last came near them, in seconds since the epoch.
    """

    core_ns: float = 0.0
    memory_ns: float = 0.0
    reached_at: float = 0.0

    @classmethod
    def recall(cls, path: Path) -> "Sentinels":
        """Return what earlier processes found; nothing when the file is missing or damaged."""
        try:
            content = json.loads(path.read_bytes())
            return cls(*(float(content[one.name]) for one in fields(cls)))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def remember(self, path: Path, found: "Sentinels", reached: bool) -> None:
        """Keep reference and best figures, unless they are not `reached` for `FORGET_SECONDS`.

        A neighbour makes a core slow for minutes: what is measured meanwhile belongs to the same
        reference. A core that is much faster gives a new one at once.
        """
        now = time.time()
        kept = replace(found, reached_at=now)
        if self != Sentinels() and (reached or now - self.reached_at < FORGET_SECONDS):
            kept = Sentinels(
                found.core_ns if found.core_ns < MUCH_FASTER * self.core_ns else self.core_ns,
                min(self.memory_ns or found.memory_ns, found.memory_ns or self.memory_ns),
                now if reached else self.reached_at,
            )
        write_atomically(path, json.dumps(asdict(kept)).encode())


@dataclass(slots=True)
class _Outcome:
    samples: dict[int, tuple[float, ...]]
    errors: dict[int, str]
    measured: int = 0
    rejected: int = 0
    unsettled: int = 0
    switches: int = 0
    found: Sentinels = Sentinels()
    culprit: int | None = None
    reason: str = ""

    @property
    def unsettled_share(self) -> float:
        """Share of the samples whose sentinels were not calm."""
        return self.unsettled / max(1, self.measured)

    @property
    def typical_error(self) -> float:
        """Standard error of the typical job's median, as a share of it; 0 for a few samples."""
        errors = [_standard_error(one) for one in self.samples.values()]
        return float(np.median(errors)) if errors else 0.0

    @property
    def disturbance(self) -> tuple[float, float]:
        """The order of attempts, the calmest first."""
        return max(self.unsettled_share, UNSETTLED_SHARE), self.typical_error


def _standard_error(samples: Sequence[float]) -> float:
    """Return how sure a median is, by those of consecutive blocks: neighbours disturb for a while.

    As a share of the median; 0 for fewer than two samples a block.
    """
    if len(samples) < 2 * ERROR_BLOCKS:
        return 0.0
    blocks = np.array_split(np.log(samples), ERROR_BLOCKS)
    return float(np.std([np.median(one) for one in blocks], ddof=1)) / math.sqrt(ERROR_BLOCKS)


def _rounds_needed(error: float, settings: Settings) -> int:
    """Return how many rounds the wanted error takes, as it falls with the square root of them."""
    times = min(float(MOST_ROUNDS), (error / settings.wanted_error) ** 2)
    return math.ceil(settings.rounds * max(1.0, times))


class _LocalProgram:
    """The measuring program on this machine."""

    def __init__(self, settings: Settings) -> None:
        path = build_harness(probe_local().target)
        self.command = (str(path),)
        self.references = references_of(path, settings)
        self.patience_seconds = settings.stall_seconds
        self._threads = settings.threads
        self._before = _steal()

    def script(self, jobs: Sequence[Job], settings: Settings, sentinels: Sentinels) -> str:
        cores = [f"cpu {core}" for core in measuring_cores(settings.threads)]
        lines = setting_lines(settings, sentinels, own_cache_bytes())
        return "\n".join([*cores, *lines, *job_lines(jobs, settings, str), "run", ""])

    def heed(self, line: str) -> None:
        pass

    def ending(self, status: int, silent: bool) -> str:
        return SILENT if silent else f"stopped with status {status}"

    def environment(self, switches: int) -> Environment:
        return _environment(self._before, switches, measuring_cores(self._threads))


def _run(
    program: Program,
    jobs: Sequence[Job],
    settings: Settings,
    progress: Progress | None,
    cancelled: threading.Event,
) -> _Outcome:
    outcome = _Outcome({}, {})
    if not jobs:
        return outcome
    try:
        process = subprocess.Popen(
            program.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise MeasurementError(f"cannot start {program.command[0]}: {error.strerror}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    sentinels = Sentinels.recall(program.references)
    started, finished = -1, False
    hung = threading.Event()
    with process, ended_when_silent(process, hung, program.patience_seconds, cancelled) as alive:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(program.script(jobs, settings, sentinels))
            process.stdin.close()
        for line in process.stdout:
            alive()
            program.heed(line)
            word, *rest = line.split() or [""]
            match word:
                case "start":
                    started = int(rest[0])
                case "started":
                    started = -1
                case "error":
                    outcome.errors[int(rest[0])] = " ".join(rest[1:])
                case "round" if progress is not None:
                    progress(int(rest[0]), settings.rounds, int(rest[1]))
                case "done":
                    outcome.found = Sentinels(float(rest[0]), float(rest[1]))
                    counts = [int(one) for one in rest[2:]]
                    outcome.measured, outcome.rejected, outcome.unsettled, outcome.switches = counts
                    finished = True
                case "samples":
                    outcome.samples[int(rest[0])] = tuple(float(one) for one in rest[1:])
                case "emulated":
                    raise MeasurementError(
                        "an emulator runs the measuring program: its latencies are no evidence"
                    )
                case _:
                    pass
    if not finished:
        if cancelled.is_set():
            raise MeasurementError("measuring was cancelled")
        reason = program.ending(process.returncode, hung.is_set())
        if started < 0:
            raise MeasurementError(f"the measuring process failed: {reason}")
        outcome.culprit, outcome.reason = started, reason
    return outcome


@contextlib.contextmanager
def ended_when_silent(
    process: subprocess.Popen[str],
    hung: threading.Event,
    seconds: float,
    cancelled: threading.Event | None = None,
) -> Iterator[Callable[[], None]]:
    """Kill a process when it says nothing for so many seconds, end it when all is cancelled.

    Yields the sign of life. What is raised meanwhile ends the process too, with time to do so in
    order.
    """
    beat, stop = threading.Event(), threading.Event()

    def watch() -> None:
        silent_since = time.monotonic()
        while not stop.is_set():
            if beat.wait(min(seconds, WATCH_SECONDS)):
                beat.clear()
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since >= seconds:
                hung.set()
                process.kill()
                return
            if cancelled is not None and cancelled.is_set():
                process.terminate()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield beat.set
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_SECONDS)
        process.kill()
        raise
    finally:
        stop.set()
        beat.set()
        thread.join()


def setting_lines(settings: Settings, sentinels: Sentinels, cache_bytes: int) -> list[str]:
    """Return what the measuring program reads before the jobs; the cores to run on come first.

    `cache_bytes` is the size of a core's own cache.
    """
    return [
        f"cache {cache_bytes}",
        f"threads {settings.threads}",
        f"flush {settings.flush_bytes}",
        f"rounds {settings.rounds}",
        f"sample_ns {settings.sample_us * 1e3}",
        f"find_ns {settings.find_seconds * 1e9}",
        f"core {settings.core_drift} {sentinels.core_ns}",
        f"memory {settings.memory_drift} {sentinels.memory_ns}",
        f"seed {settings.seed}",
    ]


def job_lines(
    jobs: Sequence[Job], settings: Settings, path_there: Callable[[Path], str]
) -> list[str]:
    """Return what the measuring program reads about jobs whose libraries have those paths there."""
    lines = [_job_line(job, path_there(job.library)) for job in jobs]
    anchor = settings.anchor
    if anchor is None:
        return lines
    return [f"anchor {_kernel_words(anchor, path_there(anchor.library))}", *lines]


def _job_line(job: Job, library: str) -> str:
    if isinstance(job, NetworkJob):
        return f"network {library}"
    return f"kernel {_kernel_words(job, library)}"


def _kernel_words(job: KernelJob, library: str) -> str:
    sizes = " ".join(str(size) for size in _sizes(job.workload))
    return f"{sizes} {job.tasks} {job.symbol} {library}"


def _sizes(workload: Workload) -> tuple[int, ...]:
    """Return the floats behind each of a kernel's pointers, and those of a thread's scratch."""
    output = workload.out_height * workload.out_width * workload.out_channels
    needs_other = workload.residual or workload.operator is Operator.SCALE
    return (
        workload.height * workload.width * workload.in_channels,
        workload.weight_count,
        workload.bias_count,
        output if needs_other else 0,
        output,
        workload.scratch_count,
    )


def measuring_cores(threads: int) -> tuple[int, ...]:
    """Return the cores to run on: the last allowed ones, the least likely to serve interrupts.

    Raises MeasurementError when there are fewer than threads.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        raise MeasurementError(
            f"measuring with {threads} threads needs as many cores, this process may use"
            f" {len(allowed)}"
        )
    return tuple(allowed[-threads:])


def references_of(program: Path, settings: Settings) -> Path:
    """Return the file that remembers what the sentinels can do beside jobs of such settings."""
    anchor = "chain" if settings.anchor is None else settings.anchor.library.stem
    return program.with_name(f"{program.name}.{anchor}.{settings.threads}.json")


def own_cache_bytes() -> int:
    """Return the size of the own (second-level) cache of the core that measures.

    The usual size where the system does not tell.
    """
    cores = measuring_cores(1)
    core = Path(f"/sys/devices/system/cpu/cpu{cores[0] if cores else 0}")
    for level in core.glob("cache/*/level"):
        if level.read_text().strip() == "2":
            size = parse_cache_size(level.with_name("size").read_text())
            if size:
                return size
    return USUAL_CACHE_BYTES


def build_harness(target: Target) -> Path:
    """Return the measuring program, compiled once and cached by the hash of its sources.

    Raises:
        ToolchainError: no compiler for the target's family, or it failed.
    """
    source = resources.files("bignas.latency").joinpath("harness.c").read_bytes()
    sources = {"harness.c": source, **runtime_files(THREADS_OF_LIBRARY)}
    digest = hashlib.sha256(b"".join(sources.values())).hexdigest()[:16]
    path = cache_folder() / f"harness-{digest}-{target.architecture}"
    if not path.exists():
        unnamed = path.with_name(f"{path.name}-{os.getpid()}")  # not found before it can be run
        write_atomically(unnamed, link_program(sources, target))
        unnamed.chmod(0o755)
        unnamed.replace(path)
    return path


def _steal() -> tuple[float, float]:
    times = psutil.cpu_times()
    return float(getattr(times, "steal", 0.0)), float(sum(times))


def _environment(before: tuple[float, float], switches: int, cores: tuple[int, ...]) -> Environment:
    steal, total = _steal()
    passed = max(total - before[1], 1e-9)
    frequency = None
    with contextlib.suppress(OSError, NotImplementedError, AttributeError):
        frequency = float(psutil.cpu_freq().current) or None
    governor = None
    with contextlib.suppress(OSError, IndexError):
        path = Path(f"/sys/devices/system/cpu/cpu{cores[0]}/cpufreq/scaling_governor")
        governor = path.read_text(encoding="ascii").strip()
    return Environment(
        load_average=os.getloadavg()[0],
        steal_fraction=min(1.0, max(0.0, (steal - before[0]) / passed)),
        frequency_mhz=frequency,
        context_switches=switches,
        affinity=cores,
        governor=governor,
    )


def evidence_hash() -> str:
    """Return the hash of what latencies are evidence of: the kernels' code, and this protocol."""
    return hashlib.sha256(f"{code_hash()} {PROTOCOL}".encode()).hexdigest()[:16]


def runtime_version() -> str:
    """Return what measured binaries run on, for provenance records."""
    return f"bignas static runner, {platform.system()} {platform.machine()}"
