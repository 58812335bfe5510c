"""The measuring program (harness.c): how it is built, and what it reads."""

import hashlib
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from bignas.compile.network import THREADS_OF_LIBRARY, runtime_files
from bignas.compile.toolchain import link_program
from bignas.device_db.files import cache_folder, write_atomically
from bignas.device_db.target import Target
from bignas.device_db.workload import Operator
from bignas.latency.jobs import Job, KernelJob, NetworkJob, Settings
from bignas.latency.sentinels import Sentinels

__all__ = ["build_harness", "job_lines", "setting_lines"]


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
        f"core {settings.core_drift} {sentinels.core_ns} {sentinels.fastest_core}",
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
    sizes = " ".join(str(size) for size in _sizes(job))
    return f"{sizes} {job.tasks} {job.symbol} {library}"


def _sizes(job: KernelJob) -> tuple[int, ...]:
    """Return the floats behind each of a kernel's pointers, and those of a thread's scratch."""
    workload = job.workload
    output = workload.out_height * workload.out_width * workload.out_channels
    needs_other = workload.residual or workload.operator is Operator.SCALE
    return (
        workload.height * workload.width * workload.in_channels,
        workload.weight_count if job.weight_count is None else job.weight_count,
        workload.bias_count,
        output if needs_other else 0,
        output,
        workload.scratch_count,
    )
