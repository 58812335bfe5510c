"""Measures a delivered bundle on this machine, in a process of its own."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from bignas.compile.bundle import LIBRARY, Bundle
from bignas.compile.manifest import Latency
from bignas.device_db.errors import MeasurementError
from bignas.device_db.records import MeasurementKind
from bignas.latency.protocol import NetworkJob, Settings, measure

__all__ = ["BENCH_SETTINGS", "bench_bundle"]

BENCH_SETTINGS = Settings(rounds=100, sample_us=1000.0, attempts=4)


def bench_bundle(bundle: Bundle, settings: Settings = BENCH_SETTINGS) -> Latency:
    """Return the measured latency of a bundle; its p50 is the figure that budgets are held to.

    Raises:
        BundleError: a damaged bundle, or one that this machine cannot run.
        MeasurementError: the binary crashes or hangs.
    """
    bundle.check_files()
    bundle.check_machine()
    with tempfile.TemporaryDirectory(prefix="bignas-bench-") as folder:
        library = Path(folder) / LIBRARY
        shutil.copyfile(bundle.path / LIBRARY, library)
        settings = replace(settings, threads=bundle.manifest.threads)
        report = measure([NetworkJob(library)], settings)
    result = report.results[0]
    if result.error is not None:
        raise MeasurementError(f"the binary of {bundle.path} cannot be measured: {result.error}")
    low, median, high = np.quantile(np.array(result.samples_ns) / 1e6, [0.0, 0.5, 0.9])
    return Latency(
        kind=MeasurementKind.MEASURED,
        device=bundle.manifest.device,
        latency_ms=float(median),
        min_ms=float(low),
        p90_ms=float(high),
        samples=len(result.samples_ns),
    )
