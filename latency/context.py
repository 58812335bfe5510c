"""What kernels take within networks, beside what they take alone.

Decisions
- A kernel alone is measured in a typical state of the caches; what the state within networks makes
  of it is a ratio, whose logarithm is read off networks with probes (latency/in_network.py). Alone
  kernels are compared with each other; the sum of those of a network is taken of the latencies
  within networks.
- Of kernels that no measured network has, the ratio is estimated from their shape, by the usual
  `Correction`. Of others that estimate counts as one more reading or as less: an empirical Bayes
  estimate (Morris, "Parametric empirical Bayes inference", JASA 78, 1983), as networks differ in
  what they make of a kernel.
- What a predictor learns from a network, and how far it is off, must not know that network's own
  readings: `without` leaves them out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.features import kernel_features
from bignas.latency.regression import Correction, ModelKind, fit_correction
from bignas.latency.tuned import TunedKernel

__all__ = ["KernelContext", "Readings", "context_readings"]

Array = NDArray[np.float64]
Readings = Mapping[Workload, Mapping[str, float]]
"""Microseconds of kernels by the networks that they were measured in, given by their keys."""

SMALLEST_VARIANCE = 1e-8  # of logarithms


def context_readings(
    store: Store, device: str, kernels: Mapping[Workload, TunedKernel]
) -> dict[Workload, dict[str, float]]:
    """Return what the tuned `kernels` took within networks, with the present code.

    The mean of all calls in a network, and of all processes. Those of other schedules do not count.
    """
    schedules = {one: entry.schedule.to_text() for one, entry in kernels.items()}
    found: dict[Workload, dict[str, list[float]]] = {}
    for item in store.in_network_measurements(device, code_hash=evidence_hash()):
        work, network = item.workload, item.architecture
        if work is None or network is None or item.schedule != schedules.get(work):
            continue
        found.setdefault(work, {}).setdefault(network, []).append(item.p50_ns / 1e3)
    return {
        work: {network: float(np.mean(values)) for network, values in networks.items()}
        for work, networks in found.items()
    }


@dataclass(frozen=True, eq=False)
class KernelContext:
    """Logarithms of what kernels take within networks over what they take alone.

    `log_ratios` are those of kernels measured in networks, `correction` estimates others.
    """

    log_ratios: Mapping[Workload, float] = field(default_factory=dict)
    correction: Correction = field(default_factory=lambda: Correction(ModelKind.ZERO))
    readings: Readings = field(default_factory=dict, repr=False)  # logarithms; not saved
    prior_readings: float = 0.0  # how many of them an estimate counts as

    @classmethod
    def fit(cls, readings_us: Readings, alone_us: Mapping[Workload, float], seed: int = 0) -> Self:
        """Fit to readings within networks, of kernels that were measured alone too."""
        readings = {
            work: {name: float(np.log(us / alone_us[work])) for name, us in networks.items()}
            for work, networks in readings_us.items()
            if work in alone_us and networks
        }
        works = list(readings)
        if not works:
            return cls()
        means = np.array([np.mean(list(readings[one].values())) for one in works])
        fit = fit_correction(_inputs(works, [alone_us[one] for one in works]), means, seed)
        within, between = _variances(readings, fit.residuals)
        prior = within / between
        ratios = _shrunk(works, readings, fit.correction, prior, alone_us)
        return cls(ratios, fit.correction, readings, prior)

    def factors(self, workloads: Sequence[Workload], alone_us: Array) -> Array:
        """Return what each kernel takes within networks over what it takes alone, `alone_us`."""
        logs = np.array([self.log_ratios.get(one, np.nan) for one in workloads], dtype=np.float64)
        unknown = np.flatnonzero(np.isnan(logs)).tolist()
        if unknown:
            works = [workloads[index] for index in unknown]
            logs[unknown] = self.correction.predict(_inputs(works, alone_us[unknown]))
        return np.asarray(np.exp(logs))

    def without(self, networks: Collection[str], alone_us: Mapping[Workload, float]) -> Self:
        """Return it as it would be without the readings in these networks.

        And without any of kernels that `alone_us` lacks. What estimates kernels without readings
        stays as it is.
        """
        left: dict[Workload, Mapping[str, float]] = {}
        ratios: dict[Workload, float] = {}
        changed: list[Workload] = []
        for work, found in self.readings.items():
            kept = {key: one for key, one in found.items() if key not in networks}
            if not kept or work not in alone_us:
                continue
            left[work] = kept
            if len(kept) < len(found):
                changed.append(work)
            else:
                ratios[work] = self.log_ratios[work]
        ratios |= _shrunk(changed, left, self.correction, self.prior_readings, alone_us)
        return replace(self, log_ratios=ratios, readings=left)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        ordered = sorted(self.log_ratios.items(), key=lambda item: item[0].key)
        return {
            "log_ratios": {work.key: value for work, value in ordered},
            "correction": self.correction.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of to_dict. Raises KeyError, TypeError, ValueError, BignasError."""
        return cls(
            {Workload.from_key(key): float(one) for key, one in values["log_ratios"].items()},
            Correction.from_dict(values["correction"]),
        )


def _shrunk(
    works: Sequence[Workload],
    readings: Readings,
    correction: Correction,
    prior: float,
    alone_us: Mapping[Workload, float],
) -> dict[Workload, float]:
    """Return the means of the readings of kernels, the estimate being so many of them."""
    if not works:
        return {}
    estimates = correction.predict(_inputs(works, [alone_us[one] for one in works]))
    sums = np.array([sum(readings[one].values()) for one in works])
    counts = np.array([len(readings[one]) for one in works])
    return dict(zip(works, ((sums + prior * estimates) / (counts + prior)).tolist(), strict=True))


def _inputs(workloads: Sequence[Workload], alone_us: Sequence[float] | Array) -> Array:
    """Rows [n, columns] that the correction depends on."""
    return np.column_stack([kernel_features(workloads), np.log(alone_us)])


def _variances(readings: Readings, residuals: Array) -> tuple[float, float]:
    """Return the variances of one kernel's readings, and of kernels around their estimates."""
    squares, degrees = 0.0, 0
    for networks in readings.values():
        values = np.array(list(networks.values()))
        squares += float(((values - values.mean()) ** 2).sum())
        degrees += len(values) - 1
    within = squares / degrees if degrees else 0.0
    counts = np.array([len(networks) for networks in readings.values()])
    between = float(np.mean(residuals**2)) - within * float(np.mean(1 / counts))
    return max(within, SMALLEST_VARIANCE), max(between, SMALLEST_VARIANCE)
