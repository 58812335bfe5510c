"""Latencies of kernels: the table of measured ones, and a model for those nobody measured.

The model is a roofline (time = constant + work / speed of each kind of work + bytes / bandwidth,
all coefficients non-negative), fitted to relative errors, times a learned correction.
(Williams et al., "Roofline: an insightful visual performance model", CACM 52, 2009.)
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bignas.device_db.errors import InputError
from bignas.device_db.records import Workload
from bignas.latency.features import (
    ROOFLINE_FEATURES,
    KernelEstimates,
    kernel_features,
    roofline_features,
)
from bignas.latency.regression import Correction, fit_correction

__all__ = ["KernelModel", "KernelTable", "estimate_kernels", "rough_latencies_us"]

Array = NDArray[np.float64]

# The relative error that a kernel model is taken to have when there are too few kernels to tell.
DEFAULT_ERROR = 0.3
_FEWEST_FOR_AN_ERROR = 5

# Microseconds: a call, one MAC of each kind of work, one byte (the columns of ROOFLINE_FEATURES).
_ORDINARY_CORE = (0.3, 3e-5, 3e-5, 3e-5, 3e-5, 2e-5)


@dataclass(frozen=True)
class KernelTable(Mapping[Workload, float]):
    """Measured latencies (low quantile, microseconds) of tuned kernels on one device.

    `code_hash` tells which kernel generators they were measured with, `machine_digest` and
    `runtime` on what (None for tables that were not measured here). Raises InputError for a latency
    that is not positive and finite.
    """

    latencies_us: Mapping[Workload, float]
    device_name: str
    code_hash: str
    machine_digest: str | None = None  # of the device, see `Device`
    runtime: str | None = None  # see `Provenance`
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.latencies_us.items(), key=lambda item: item[0].key))
        for workload, latency_us in ordered.items():
            if not (math.isfinite(latency_us) and latency_us > 0):
                raise InputError(f"the latency of kernel {workload.key} is {latency_us} us")
        object.__setattr__(self, "latencies_us", MappingProxyType(ordered))
        text = json.dumps([self.device_name, self.code_hash, self.to_dict()])
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    def __getitem__(self, workload: Workload) -> float:
        return self.latencies_us[workload]

    def __iter__(self) -> Iterator[Workload]:
        return iter(self.latencies_us)

    def __len__(self) -> int:
        return len(self.latencies_us)

    def __hash__(self) -> int:
        return hash(self.digest)

    def to_dict(self) -> dict[str, float]:
        """JSON values: workload key -> microseconds, sorted by key."""
        return {workload.key: latency_us for workload, latency_us in self.latencies_us.items()}


@dataclass(frozen=True, eq=False)
class KernelModel:
    """Estimates the latency of a kernel from its shape."""

    roofline: Array  # one coefficient for each of ROOFLINE_FEATURES, microseconds
    floor_us: float  # no kernel is estimated to be faster
    correction: Correction  # of the logarithm, on kernel_features
    error: float  # median absolute error of the logarithm on kernels left out of the fit

    @classmethod
    def fit(cls, table: Mapping[Workload, float], seed: int) -> "KernelModel":
        """Fit to a table of latencies in microseconds. Raises InputError when it is empty."""
        if not table:
            raise InputError("no kernel has been measured yet; run `bignas profile` first")
        workloads = list(table)
        latency_us = np.array([table[workload] for workload in workloads], dtype=np.float64)
        roofline = _fit_roofline(roofline_features(workloads), latency_us)
        floor_us = float(latency_us.min()) / 2
        base_us = np.maximum(roofline_features(workloads) @ roofline, floor_us)
        fit = fit_correction(kernel_features(workloads), np.log(latency_us / base_us), seed)
        few = len(table) < _FEWEST_FOR_AN_ERROR
        error = DEFAULT_ERROR if few else float(np.median(np.abs(fit.residuals)))
        return cls(roofline, floor_us, fit.correction, error)

    def estimate_us(self, workloads: Sequence[Workload]) -> Array:
        """Latencies in microseconds, one a workload."""
        base_us = np.maximum(roofline_features(workloads) @ self.roofline, self.floor_us)
        return np.asarray(base_us * np.exp(self.correction.predict(kernel_features(workloads))))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "roofline": dict(zip(ROOFLINE_FEATURES, self.roofline.tolist(), strict=True)),
            "floor_us": self.floor_us,
            "correction": self.correction.to_dict(),
            "error": self.error,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "KernelModel":
        """Inverse of to_dict. Raises KeyError, TypeError, ValueError or XGBoostError."""
        coefficients = [float(values["roofline"][name]) for name in ROOFLINE_FEATURES]
        return cls(
            roofline=np.array(coefficients),
            floor_us=float(values["floor_us"]),
            correction=Correction.from_dict(values["correction"]),
            error=float(values["error"]),
        )


def _fit_roofline(features: Array, latency_us: Array) -> Array:
    """Non-negative least squares of relative errors, on columns scaled to one."""
    scale = np.maximum(features.max(axis=0), 1.0)
    rows = features / scale / latency_us[:, None]
    coefficients, _ = nnls(rows, np.ones(len(rows)))
    return np.asarray(coefficients / scale)


def rough_latencies_us(table: Mapping[Workload, float], workloads: Sequence[Workload]) -> Array:
    """Look kernels up where they were measured; take a roofline for the rest, without a correction.

    Of an empty table come the latencies of an ordinary processor core. That is enough to tell large
    kernels from small ones, and much faster than a `KernelModel`.
    """
    features = roofline_features(workloads)
    if table:
        known_us = np.array(list(table.values()))
        coefficients = _fit_roofline(roofline_features(list(table)), known_us)
        rough_us = np.maximum(features @ coefficients, known_us.min() / 2)
    else:
        rough_us = features @ np.array(_ORDINARY_CORE)
    return np.array(
        [table.get(one, float(us)) for one, us in zip(workloads, rough_us, strict=True)]
    )


def estimate_kernels(
    table: Mapping[Workload, float], model: KernelModel, workloads: Sequence[Workload]
) -> KernelEstimates:
    """Look kernels up where they were measured and estimate the rest."""
    measured = np.array([workload in table for workload in workloads], dtype=np.bool_)
    latency_us = np.array([table.get(workload, 0.0) for workload in workloads], dtype=np.float64)
    unknown = [workload for workload in workloads if workload not in table]
    if unknown:
        latency_us[~measured] = model.estimate_us(unknown)
    return KernelEstimates(latency_us, measured)
