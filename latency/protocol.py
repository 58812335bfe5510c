"""The measurement protocol: what makes two latencies comparable.

- Measuring happens in a native process of its own (latency/harness.c), pinned to cores: a kernel
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
- The measuring program is the same on every machine; a `Program` tells how it is started on one
  (latency/local.py, latency/remote.py).
- Every sample is kept, at that reference, and so is what the machine was doing meanwhile.
"""

import contextlib
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import Environment
from bignas.latency.jobs import Job, Progress, Report, Settings, TimingResult
from bignas.latency.sentinels import Sentinels, company_of

__all__ = ["Program", "ended_when_silent", "measure_with"]

SILENT = "no progress"
ENDING_SECONDS = 10.0  # for a process to end in order
WATCH_SECONDS = 0.5  # between looks whether a process has to be ended
UNSETTLED_SHARE = 0.05  # of the samples may stay disturbed before all is measured again
MOST_ROUNDS = 16  # of an attempt, for one of the first
ERROR_BLOCKS = 8  # of rounds, whose medians tell how sure a median is
PAUSE_SECONDS = 1.0  # before that: disturbances on shared machines last for seconds


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

    def script(self, jobs: Sequence[Job], settings: Settings, sentinels: Sentinels) -> str:
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
        outcome.steps = {remaining[index]: one for index, one in outcome.steps.items()}
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
        path, company = program.references, company_of(jobs)
        Sentinels.recall(path, company).remember(path, company, calmest.found, reached)
    results = [TimingResult((), failures.get(index, "not measured")) for index in range(len(jobs))]
    for index, samples in calmest.samples.items():
        if index not in failures:
            results[index] = TimingResult(samples, steps_ns=tuple(calmest.steps.get(index, ())))
    environment = program.environment(calmest.switches)
    return Report(tuple(results), calmest.rejected, calmest.unsettled, environment)


@dataclass(slots=True)
class _Outcome:
    samples: dict[int, tuple[float, ...]]
    errors: dict[int, str]
    steps: dict[int, list[tuple[float, ...]]] = field(default_factory=dict)
    measured: int = 0
    rejected: int = 0
    unsettled: int = 0
    switches: int = 0
    found: Sentinels = field(default_factory=Sentinels)
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
    sentinels = Sentinels.recall(program.references, company_of(jobs))
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
                case "steps":  # in their order
                    steps = outcome.steps.setdefault(int(rest[0]), [])
                    steps.append(tuple(float(one) for one in rest[2:]))
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
