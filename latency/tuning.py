"""Fills the kernel table: builds the candidates of each workload, measures them, keeps all samples.

Building uses all cores, measuring one of them alone, so the two alternate batch by batch. Every
batch is committed before the next one starts: an interruption costs at most the batch under way.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bignas.compile.fusion import choose_kernels
from bignas.compile.kernel_identity import symbol_of
from bignas.compile.objects import (
    BuiltObject,
    ObjectCache,
    RequestedObject,
    build_objects,
    exit_with_parent,
)
from bignas.compile.packing import count_read
from bignas.compile.schedule import Schedule, candidates, task_count
from bignas.compile.toolchain import link_shared_library
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError, RemoteError
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.anchor import anchored
from bignas.latency.jobs import CAREFUL, KernelJob, Report, Settings, TimingResult
from bignas.latency.measuring import measure_on, own_cache_of
from bignas.latency.recording import Recorder
from bignas.latency.tuned import (
    FINAL_SAMPLES,
    TunedKernel,
    best_kernels,
    failed_kernels,
    tuned_kernels,
)

__all__ = ["Tuner", "ensure_networks_tuned", "ensure_tuned", "tune_missing"]

BATCH = 24  # workloads that are built, measured and committed together
SHARES = 4  # of the builds, for each worker process: they end at about the same time
LARGEST_SHARE = 8  # builds
FEW_BUILDS = 24  # up to so many are done before worker processes would have started
TRIAL = Settings(rounds=10, sample_us=40.0, find_seconds=CAREFUL.find_seconds)
FINAL = replace(CAREFUL, rounds=FINAL_SAMPLES, sample_us=60.0, attempts=2)


class Tuner:
    """Tunes workloads on one device; use as a context manager, it owns worker processes.

    `weights_bytes` are those of the networks that the kernels are for: they decide whether weights
    are in a core's own cache when a kernel starts.
    """

    def __init__(
        self, device: Device, store: Store, cache: ObjectCache, weights_bytes: int = 0
    ) -> None:
        self.device = device
        own = own_cache_of(device)
        self.flush_bytes = own if weights_bytes > own else 0
        self.store = store
        self.cache = cache
        self.recorder = Recorder(device.name)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Tuner":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def tune(self, workloads: Sequence[Workload]) -> int:
        """Tune one batch of workloads, commit the records and return how many were rejected rounds.

        Raises:
            MeasurementError: measuring is impossible on this machine.
            RemoteError: the servers of a remote device cannot be used.
            ToolchainError: the C compiler is missing or fails.
        """
        pairs = [(one, s) for one in workloads for s in self._candidates(one)]
        built = self._build_all(pairs)
        usable = [(workload, schedule) for workload, schedule, error in built if error is None]
        with _library(usable, self.cache) as library:
            trials, report = self._measure(usable, library, TRIAL)
            winners = [(one, best.schedule) for one, best in best_kernels(trials).items()]
            try:
                finals, final_report = self._measure(winners, library, FINAL)
            except RemoteError:  # no server is left: without finals, trials are no evidence
                self.store.add_measurements(one for one in trials if not one.ok)
                raise
        unbuilt = [
            self.recorder.kernel(one, schedule, TimingResult((), error), report.environment)
            for one, schedule, error in built
            if error is not None
        ]
        self.store.add_measurements([*trials, *finals, *unbuilt])
        return report.rejected + final_report.rejected

    def check(self, kernels: Sequence[RequestedObject]) -> int:
        """Measure winners once more, as long as before; commit and return rejected rounds.

        Raises as `tune` does.
        """
        built = self._build_all(kernels)
        usable = [(workload, schedule) for workload, schedule, error in built if error is None]
        with _library(usable, self.cache) as library:
            records, report = self._measure(usable, library, FINAL)
        self.store.add_measurements(records)
        return report.rejected

    def _candidates(self, workload: Workload) -> Sequence[Schedule]:
        return candidates(workload, self.device.target, self.device.threads)

    def _measure(
        self, pairs: Sequence[RequestedObject], library: Path, settings: Settings
    ) -> tuple[list[Measurement], Report]:
        lanes = self.device.target.vector_lanes
        jobs = [
            KernelJob(
                library,
                symbol_of(one, schedule),
                one,
                task_count(one, schedule, lanes),
                count_read(one, schedule),
            )
            for one, schedule in pairs
        ]
        device = self.device
        settings = anchored(settings, device.target, device.threads)
        settings = replace(settings, flush_bytes=self.flush_bytes)
        report = measure_on(device, jobs, settings)
        records = [
            self.recorder.kernel(one, schedule, result, report.environment)
            for (one, schedule), result in zip(pairs, report.results, strict=True)
        ]
        return records, report

    def _build_all(self, pairs: Sequence[RequestedObject]) -> list[BuiltObject]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        folder = self.cache.folder.parent
        if cores == 1 or len(pairs) <= FEW_BUILDS:
            return build_objects(folder, self.cache.target, pairs)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                cores, mp_context=context, initializer=exit_with_parent
            )
        size = min(LARGEST_SHARE, -(-len(pairs) // (SHARES * cores)))
        shares = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        try:
            futures = [
                self._pool.submit(build_objects, folder, self.cache.target, share)
                for share in shares
            ]
            return [entry for future in futures for entry in future.result()]
        except BrokenProcessPool as error:
            raise MeasurementError(f"a process that builds kernels died{_cause()}") from error


def _cause() -> str:
    """Return what a user can do about worker processes that die, if their script is the cause.

    Workers import the program's main module, and must not start its work once more.
    """
    path = getattr(sys.modules["__main__"], "__file__", None)
    try:
        guarded = path is None or "__name__" in Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        guarded = True
    if guarded:
        return ""
    return f': put what {path} does under `if __name__ == "__main__":`, workers import the file too'


@contextmanager
def _library(pairs: Sequence[RequestedObject], cache: ObjectCache) -> Iterator[Path]:
    """Link kernels to one shared library in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="bignas-kernels-") as folder:
        path = Path(folder) / "kernels.so"
        objects = [cache.path(workload, schedule) for workload, schedule in pairs]
        path.write_bytes(link_shared_library({}, objects, cache.target))
        yield path


def tune_missing(
    workloads: Sequence[Workload],
    device: Device,
    store: Store,
    cache: ObjectCache,
    known: set[Workload],
    progress: Callable[[int, int, int], bool] | None = None,
    weights_bytes: int = 0,
) -> None:
    """Tune the workloads that are not `known`, batch by batch, in their order.

    Those that failed before, time and again, are left out. `weights_bytes` are those of the
    networks that they are for. `progress(done, total, rejected)` is called after every batch; it
    returns False to stop early.
    """
    hopeless = failed_kernels(store, device.name)
    missing = [one for one in dict.fromkeys(workloads) if one not in known and one not in hopeless]
    rejected = 0
    with Tuner(device, store, cache, weights_bytes) as tuner:
        for start in range(0, len(missing), BATCH):
            rejected += tuner.tune(missing[start : start + BATCH])
            done = min(start + BATCH, len(missing))
            if progress is not None and not progress(done, len(missing), rejected):
                return


def ensure_tuned(
    workloads: Sequence[Workload],
    device: Device,
    store: Store,
    cache: ObjectCache,
    progress: Callable[[int, int, int], bool] | None = None,
    weights_bytes: int = 0,
) -> dict[Workload, TunedKernel]:
    """Tune those of the workloads that the store lacks, and return all tuned kernels of the device.

    `progress` and `weights_bytes` are those of `tune_missing`.

    Raises:
        MeasurementError: a kernel of them cannot be measured.
        ToolchainError: the C compiler is missing or fails.
    """
    kernels = tuned_kernels(store, device.name)
    return _completed(kernels, workloads, device, store, cache, progress, weights_bytes)


def _completed(
    kernels: dict[Workload, TunedKernel],
    workloads: Sequence[Workload],
    device: Device,
    store: Store,
    cache: ObjectCache,
    progress: Callable[[int, int, int], bool] | None,
    weights_bytes: int,
) -> dict[Workload, TunedKernel]:
    """Return the tuned kernels of the device, `kernels`, with those of the workloads they lack."""
    if all(one in kernels for one in workloads):
        return kernels
    tune_missing(workloads, device, store, cache, set(kernels), progress, weights_bytes)
    kernels = tuned_kernels(store, device.name)
    for workload in workloads:
        if workload not in kernels:
            reason = failed_kernels(store, device.name).get(workload)
            raise MeasurementError(
                f"no kernel for {workload.key} could be measured{f': {reason}' if reason else ''}"
            )
    return kernels


def ensure_networks_tuned(
    networks: Iterable[Sequence[Workload]],
    device: Device,
    store: Store,
    cache: ObjectCache,
    progress: Callable[[int, int, int], bool] | None = None,
    weights_bytes: int = 0,
) -> dict[Workload, TunedKernel]:
    """Tune what networks of these layers are built from, and return all tuned kernels.

    Which kernels those are, fused or not, the present table says; the rest is as in `ensure_tuned`.
    """
    kernels = tuned_kernels(store, device.name)
    latency_us = {one: entry.latency_us for one, entry in kernels.items()}
    needed = [one for layers in networks for one in choose_kernels(layers, latency_us)]
    return _completed(kernels, needed, device, store, cache, progress, weights_bytes)
