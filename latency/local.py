"""Measures on this machine, by the protocol."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import Environment
from bignas.device_db.probe import LOCAL, probe_local
from bignas.latency.harness import build_harness, job_lines, setting_lines
from bignas.latency.jobs import Job, Progress, Report, Settings
from bignas.latency.machine import USUAL_CACHE_BYTES, parse_cache_size
from bignas.latency.protocol import SILENT, measure_with
from bignas.latency.sentinels import Sentinels, references_of

__all__ = ["measure", "measuring_cores", "own_cache_bytes"]


def measure(jobs: Sequence[Job], settings: Settings, progress: Progress | None = None) -> Report:
    """Measure jobs on this machine, as `measure_with` does.

    Raises:
        MeasurementError: the measuring process fails for a reason that is no job's fault.
        ToolchainError: the C compiler is missing or fails.
    """
    return measure_with(_LocalProgram(settings), jobs, settings, progress)


class _LocalProgram:
    """The measuring program on this machine."""

    def __init__(self, settings: Settings) -> None:
        self.command = (str(build_harness(probe_local().target)),)
        self.references = references_of(LOCAL, settings)
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
