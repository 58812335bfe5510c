"""Measures a delivered bundle, on this machine or a remote device, in processes of its own."""

import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from bignas.compile.bundle import LIBRARY, Bundle
from bignas.compile.manifest import Latency
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import MeasurementKind
from bignas.device_db.target import Target
from bignas.latency.anchor import anchored
from bignas.latency.jobs import CAREFUL, NetworkJob, Settings, of_processes
from bignas.latency.local import measure
from bignas.latency.measuring import measure_on
from bignas.latency.remote_bundle import check_fits

__all__ = ["BENCH_DEVIATION", "BENCH_SETTINGS", "MEDIAN_DEVIATION", "PROCESSES", "bench_bundle"]

BENCH_SETTINGS = replace(CAREFUL, rounds=50, sample_us=1000.0)
PROCESSES = 15  # whose samples are pooled: where its pages lie in the caches is drawn anew in each
MEDIAN_DEVIATION = math.sqrt(math.pi / 2 / PROCESSES)  # of a median of so many, in single ones
LASTING_SHARE = 0.5  # of the variance of measurements minutes apart: lasts longer than a bench
BENCH_DEVIATION = math.sqrt(LASTING_SHARE + (1 - LASTING_SHARE) * MEDIAN_DEVIATION**2)
"""Of a bench among others minutes apart, in the standard deviations of single processes."""


def bench_bundle(
    bundle: Bundle, settings: Settings = BENCH_SETTINGS, device: Device | None = None
) -> Latency:
    """Return the measured latency of a bundle; its p50 is the figure that budgets are held to.

    It is measured on `device` when that is a remote one, else on this machine.

    Raises:
        BundleError: a damaged bundle, or one that the machine cannot run.
        RemoteError: a remote device's tracker or servers cannot be used.
        MeasurementError: the binary crashes or hangs.
    """
    bundle.check_files()
    remote = device if device is not None and device.remote is not None else None
    if remote is None:
        bundle.check_machine()
    else:
        check_fits(bundle, remote)
    with tempfile.TemporaryDirectory(prefix="bignas-bench-") as folder:
        library = Path(folder) / LIBRARY
        shutil.copyfile(bundle.path / LIBRARY, library)
        manifest = bundle.manifest
        target = Target.from_dict(manifest.target)
        settings = of_processes(anchored(settings, target, manifest.threads), PROCESSES)
        jobs = [NetworkJob(library)]
        samples_ns: list[float] = []
        for _ in range(PROCESSES):
            report = (
                measure(jobs, settings) if remote is None else measure_on(remote, jobs, settings)
            )
            error = report.results[0].error
            if error is not None:
                raise MeasurementError(f"the binary of {bundle.path} cannot be measured: {error}")
            samples_ns += report.results[0].samples_ns
    low, median, high = np.quantile(np.array(samples_ns) / 1e6, [0.0, 0.5, 0.9])
    return Latency(
        kind=MeasurementKind.MEASURED,
        device=bundle.manifest.device if remote is None else remote.name,
        latency_ms=float(median),
        min_ms=float(low),
        p90_ms=float(high),
        samples=len(samples_ns),
    )
