"""How good a latency predictor is, on subnets that are compiled and measured now.

Predictions are for the machine as it was when it was profiled. What it has changed by since, some
subnets of the profile tell, which are measured again beside the fresh ones (`latency/drift.py`):
predictions are shifted by that, as those of a search are by the networks that it has measured.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bignas.compile.objects import ObjectCache
from bignas.compile.workload import workloads
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.latency import metrics
from bignas.latency.bench import PROCESSES
from bignas.latency.drift import drifts, references
from bignas.latency.evidence import evidence_hash
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.recording import Recorder
from bignas.latency.subnets import measure_subnets, measured_subnets, typical_weights_bytes
from bignas.latency.tuning import ensure_networks_tuned
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["PredictorEvaluation", "evaluate_predictor"]

Array = NDArray[np.float64]

BATCH = 10  # fresh subnets measured together: what the machine is off by, they have in common
REFERENCES = 5  # measured beside each batch


@dataclass(frozen=True, slots=True)
class PredictorEvaluation:
    """Errors as fractions; `repeatability` is the mean difference of a binary in two processes.

    What was measured is the median over `PROCESSES` processes, as that of a delivered binary.
    `predicted_ms` and all errors are of predictions shifted by the `drift` since the profile;
    `unshifted_mape` and `unshifted_coverage` are of those before.

    `coverage` is the share of measured latencies inside the interval, `confidence` the wanted one;
    `kernel_sum_mape` is the error of the plain sum of the kernel table without any correction.
    """

    mape: float
    within_5: float
    within_10: float
    spearman: float
    coverage: float
    confidence: float
    n: int
    repeatability: float
    kernel_sum_mape: float
    drift: tuple[float, ...]  # of each batch, a fraction
    unshifted_mape: float
    unshifted_coverage: float
    measured_ms: tuple[float, ...]
    predicted_ms: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def evaluate_predictor(
    predictor: LatencyPredictor,
    space: SearchSpace,
    device: Device,
    store: Store,
    cache: ObjectCache,
    subnets: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> PredictorEvaluation:
    """Predict `subnets` random architectures never measured before, then build and measure them.

    Each is measured in `PROCESSES` processes, and their median is what predictions are compared
    with, beside `REFERENCES` subnets of the profile for each `BATCH`. Nothing of it goes into the
    store, but kernels that had to be tuned do.

    Raises:
        MeasurementError: a subnet cannot be measured.
    """
    fresh = _fresh(space, device, store, subnets, seed)
    profiled = measured_subnets(store, device.name, space, evidence_hash())
    batches = [fresh[start : start + BATCH] for start in range(0, len(fresh), BATCH)]
    recorder = Recorder(device.name)
    processes_ms: list[Array] = []
    log_ratios: list[Array] = []
    for number, batch in enumerate(batches):
        known = references(profiled, REFERENCES, number)
        chosen = [*batch, *(architecture for architecture, _ in known)]
        layers = [workloads(space, architecture) for architecture in chosen]
        kernels = ensure_networks_tuned(
            layers, device, store, cache, weights_bytes=typical_weights_bytes(space)
        )
        records = measure_subnets(
            space, chosen, kernels, device, cache, recorder, processes=PROCESSES
        )
        latency_ms = np.array([_latency_ms(one) for one in records])
        latency_ms = latency_ms.reshape(PROCESSES, len(chosen))
        processes_ms.append(latency_ms[:, : len(batch)])
        now_ms = np.median(latency_ms[:, len(batch) :], axis=0)
        log_ratios.append(np.log(now_ms / [then_ms for _, then_ms in known]))
        if progress is not None:
            progress(sum(map(len, batches[: number + 1])), len(fresh))
    processes = np.concatenate(processes_ms, axis=1)
    shifts = drifts(log_ratios) if profiled else np.zeros(len(batches))
    shifted = [predictor.shifted(float(one)) if profiled else predictor for one in shifts]
    found = [one.predict(batch) for one, batch in zip(shifted, batches, strict=True)]
    measured, plain = np.median(processes, axis=0), predictor.predict(fresh)
    predicted = np.concatenate([one.latency_ms for one in found])
    return PredictorEvaluation(
        mape=metrics.mape(predicted, measured),
        within_5=metrics.within(predicted, measured, 0.05),
        within_10=metrics.within(predicted, measured, 0.10),
        spearman=metrics.spearman(predicted, measured),
        coverage=metrics.coverage(
            np.concatenate([one.low_ms for one in found]),
            np.concatenate([one.high_ms for one in found]),
            measured,
        ),
        confidence=predictor.confidence,
        n=len(fresh),
        repeatability=float(np.mean(np.abs(processes[1] - processes[0]) / processes[0])),
        kernel_sum_mape=metrics.mape(predictor.kernel_sums_ms(fresh), measured),
        drift=tuple(np.expm1(shifts).tolist()),
        unshifted_mape=metrics.mape(plain.latency_ms, measured),
        unshifted_coverage=metrics.coverage(plain.low_ms, plain.high_ms, measured),
        measured_ms=tuple(measured.tolist()),
        predicted_ms=tuple(predicted.tolist()),
    )


def _fresh(
    space: SearchSpace, device: Device, store: Store, count: int, seed: int
) -> list[Architecture]:
    """Return random architectures that no measurement in the store is of, at most `count`."""
    known = {one for one, _ in measured_subnets(store, device.name, space, evidence_hash())}
    random = np.random.default_rng([seed, 0xF8E5])
    found: dict[Architecture, None] = {}
    for _ in range(100 * count):
        architecture = space.sample(random)
        if architecture not in known:
            found[architecture] = None
        if len(found) == count:
            break
    if not found:
        raise MeasurementError(f"every architecture of {space.name!r} has been measured already")
    return list(found)


def _latency_ms(record: Measurement) -> float:
    if not record.ok:
        raise MeasurementError(f"a subnet could not be measured: {record.error}")
    return record.p50_ns / 1e6
