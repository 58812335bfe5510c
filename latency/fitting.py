"""Trains the latency predictor of a space on all that the store holds for a device.

Networks are measured in several processes, each of which is off as a whole: that is taken away
before anything is learned from them. What a binary is measured at has it still, as far as the
median of several processes does not take it out, so intervals are widened by it. Where the drift of
the machine is known, what single networks change by is left of that.

Half of what measurements minutes apart differ by is taken to last longer than such processes do: a
convention, with which the intervals of four profiles came nearer to their confidence. Little of
what single networks differ by lasts, so that a median of many processes has less of it than the few
measurements that intervals are calibrated on (both in docs/decisions.md).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean, median

from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError
from bignas.device_db.store import Store
from bignas.latency.bench import BENCH_DEVIATION, MEDIAN_DEVIATION
from bignas.latency.evidence import evidence_hash
from bignas.latency.in_network_readings import in_network_readings
from bignas.latency.known_tables import known_tables
from bignas.latency.metrics import agreeing_mean, deviation
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.process_effects import NetworkReading, ProcessEffects
from bignas.latency.profile import space_workloads
from bignas.latency.subnets import by_network, repeatability, subnet_readings
from bignas.latency.tuned import kernel_table, tuned_kernels
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["fit_predictor"]

OWN_LASTING_SHARE = 0.1  # of the variance of networks around all that are measured together
OWN_BENCH_VARIANCE = OWN_LASTING_SHARE + (1 - OWN_LASTING_SHARE) * MEDIAN_DEVIATION**2
"""Of a bench, in the variances of single processes."""
EFFECT_PASSES = 2  # more change nothing that fresh networks would show


def fit_predictor(
    space: SearchSpace, device: Device, store: Store, confidence: float = 0.9
) -> LatencyPredictor:
    """Train the latency predictor of a space on all that the store holds for a device.

    Kernels of the space that were not measured are estimated with the tables of other devices.

    Raises:
        MeasurementError: no kernel of the device has been measured.
    """
    table = kernel_table(store, device.name)
    if not len(table):
        raise MeasurementError(
            f"nothing is measured on {device.name} yet;"
            f" run `bignas profile SPACE --device {device.name}`"
        )
    complete = all(one in table for one in space_workloads(space))
    kernels = replace(
        LatencyPredictor.of_kernels(
            space, table, confidence, sources=() if complete else known_tables(store, device)
        ),
        repeatability=repeatability(store, device.name, space, evidence_hash()),
    )
    within = in_network_readings(store, device.name, tuned_kernels(store, device.name))
    readings = subnet_readings(store, device.name, space, evidence_hash())
    networks, noise = _means((one, one.latency_ms) for one in readings), 0.0
    effects = ProcessEffects({}, 0.0)
    for _ in range(EFFECT_PASSES):
        effects = ProcessEffects.estimate(readings, kernels.held_out_ms(networks, readings=within))
        networks = _means((one, effects.without(one)) for one in readings)
        noise = effects.deviation * MEDIAN_DEVIATION
    # errors of the calibration have some of it already: as much as means of the readings have
    own = OWN_BENCH_VARIANCE - len(networks) / max(1, len(readings))
    noise = max(noise, kernels.repeatability.deviation * BENCH_DEVIATION)
    return kernels.corrected(
        networks,
        noise_variance=noise**2,
        own_variance=own * _own_deviation(readings, effects) ** 2,
        readings=within,
    )


def _own_deviation(readings: Sequence[NetworkReading], effects: ProcessEffects) -> float:
    """Return what the readings of one network differ by, when what they share is taken away.

    That is what their processes are off by, and their sessions. The standard deviation of the
    logarithm; 0 when no network was measured twice.
    """
    logs = [(one, math.log(effects.without(one))) for one in readings]
    of_networks = by_network(logs)
    of_sessions: dict[str, list[float]] = {}
    for one, value in logs:
        values = of_networks[one.network]
        if len(values) > 1:
            distance = (value - fmean(values)) * math.sqrt(len(values) / (len(values) - 1))
            of_sessions.setdefault(one.session, []).append(distance)
    distances = [one - median(found) for found in of_sessions.values() for one in found]
    return deviation(distances) if distances else 0.0


def _means(readings: Iterable[tuple[NetworkReading, float]]) -> list[tuple[Architecture, float]]:
    return [(one, agreeing_mean(found)) for one, found in by_network(readings).items()]
