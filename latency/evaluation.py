"""How good a latency predictor is, on subnets that are compiled and measured now.

Predictions are for the machine as it was when it was profiled. What they are off by now, some
subnets of the profile tell, which are measured again beside the fresh ones (`latency/drift.py`):
predictions are shifted by that, as those of a search are by the networks that it has measured, and
their intervals are wider by how far that may be off. No interval is narrower than one that the same
share of single references would keep.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # the normal quantile; scipy.stats takes seconds to import

from bignas.compile.objects import ObjectCache
from bignas.compile.workload import workloads
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.latency import metrics
from bignas.latency.bench import PROCESSES
from bignas.latency.drift import Drift, estimate_drift, references
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
REFERENCES = 10  # measured beside each batch


@dataclass(frozen=True, slots=True)
class PredictorEvaluation:
    """Errors as fractions; `repeatability` is the mean difference of a binary in two processes.

    What was measured is the median over `PROCESSES` processes, as that of a delivered binary.
    `predicted_ms` and all errors are of predictions shifted by the drift since the profile;
    `unshifted_mape` and `unshifted_coverage` are of those before. `drift` is that of networks of
    about the average size in each batch, `drift_per_doubling` what is added to it for networks
    that take twice as long; it follows from `references_ms`, what subnets of the profile were
    predicted to take and what they take now.

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
    drift_per_doubling: float
    references_ms: tuple[tuple[float, float], ...]
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
    expected_ms: list[Array] = []
    now_ms: list[Array] = []
    for number, batch in enumerate(batches):
        known = references(profiled, REFERENCES, number)
        chosen = [*batch, *known]
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
        expected_ms.append(predictor.predict(known).latency_ms)
        now_ms.append(np.median(latency_ms[:, len(batch) :], axis=0))
        if progress is not None:
            progress(sum(map(len, batches[: number + 1])), len(fresh))
    processes = np.concatenate(processes_ms, axis=1)
    drift, settled = Drift.none(len(batches)), predictor
    if profiled:
        drift, settled = estimate_drift(expected_ms, now_ms), predictor.shifted(0.0)
    measured = np.median(processes, axis=0)
    plain, found = predictor.predict(fresh), settled.predict(fresh)
    numbers = np.arange(len(fresh)) // BATCH
    predicted = found.latency_ms * np.exp(drift.of(numbers, found.latency_ms))
    level = ndtri((1 + predictor.confidence) / 2)
    half_widths = np.maximum(np.log(found.high_ms / found.latency_ms), level * drift.scatter)
    widths = np.exp(np.hypot(half_widths, level * drift.deviation(numbers, found.latency_ms)))
    return PredictorEvaluation(
        mape=metrics.mape(predicted, measured),
        within_5=metrics.within(predicted, measured, 0.05),
        within_10=metrics.within(predicted, measured, 0.10),
        spearman=metrics.spearman(predicted, measured),
        coverage=metrics.coverage(predicted / widths, predicted * widths, measured),
        confidence=predictor.confidence,
        n=len(fresh),
        repeatability=float(np.mean(np.abs(processes[1] - processes[0]) / processes[0])),
        kernel_sum_mape=metrics.mape(predictor.kernel_sums_ms(fresh), measured),
        drift=tuple(np.expm1(drift.batches).tolist()),
        drift_per_doubling=float(np.expm1(drift.slope * np.log(2))),
        references_ms=tuple(
            zip(np.concatenate(expected_ms).tolist(), np.concatenate(now_ms).tolist(), strict=True)
        ),
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
