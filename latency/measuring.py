"""Measures on a device, wherever it is: on this machine, or through RPC."""

from collections.abc import Sequence

from bignas.device_db.device import Device
from bignas.latency.jobs import Job, Progress, Report, Settings
from bignas.latency.local import measure, own_cache_bytes
from bignas.latency.remote import measure_remotely

__all__ = ["measure_on", "own_cache_of"]


def measure_on(
    device: Device, jobs: Sequence[Job], settings: Settings, progress: Progress | None = None
) -> Report:
    """Measure jobs together on a device; one that crashes or hangs gets an error.

    Raises:
        MeasurementError: measuring fails for a reason that is no job's fault.
        RemoteError: a remote device's tracker or servers cannot be used.
        ToolchainError: the C compiler is missing or fails.
    """
    if device.remote is None:
        return measure(jobs, settings, progress)
    return measure_remotely(device, jobs, settings, progress)


def own_cache_of(device: Device) -> int:
    """Return the size in bytes of one core's own (second-level) cache on a device."""
    return own_cache_bytes() if device.remote is None else device.remote.own_cache_bytes
