"""Latencies of kernels: the table of measured ones, and a model for those nobody measured.

The model is a roofline (time = constant + work / speed of each kind of work + bytes / bandwidth,
all coefficients non-negative), fitted to relative errors, times a learned correction.
(Williams et al., "Roofline: an insightful visual performance model", CACM 52, 2009.)

Tables of other devices help: what a kernel takes there is one more kind of work, and one more input
of the correction (after Lee et al., "HELP: hardware-adaptive efficient latency prediction for NAS
via meta-learning", NeurIPS 2021, who transfer whole networks). Cross-validation decides whether the
sources resemble the device at all.
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

from bignas.device_db.errors import InputError
from bignas.device_db.workload import Workload
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
_FEWEST_FOR_AN_ERROR = 5  # and more than coefficients, or the roofline passes through all of them
_FOLDS = 10  # of the cross-validation of sources
_FEWEST_FOR_SOURCES = 6  # kernels: below, a roofline of as many coefficients fits anything
_MARGIN = 0.5  # standard errors: that a roofline is off, and more than a constant, is no surprise

# Microseconds: a call, one MAC of each kind of work, one byte (the columns of ROOFLINE_FEATURES).
_ORDINARY_CORE = (0.3, 3e-5, 3e-5, 3e-5, 3e-5, 2e-5)


@dataclass(frozen=True)
class KernelTable(Mapping[Workload, float]):
    """Measured latencies (microseconds) of tuned kernels on one device.

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
    """Estimates the latency of a kernel from its shape, and from what it takes elsewhere."""

    roofline: Array  # one coefficient for each of ROOFLINE_FEATURES (us), then for each source
    floor_us: float  # no kernel is estimated to be faster
    correction: Correction  # of the logarithm, on kernel_features and log latencies of the sources
    error: float  # median absolute error of the logarithm on kernels left out of the fit
    sources: tuple[KernelTable, ...] = ()

    @classmethod
    def fit(
        cls, table: Mapping[Workload, float], seed: int, sources: Sequence[KernelTable] = ()
    ) -> "KernelModel":
        """Fit to a table of latencies in microseconds. Raises InputError when it is empty.

        `sources` are other devices; they are left out where they do not help.
        """
        if not table:
            raise InputError("no kernel has been measured yet; run `bignas profile` first")
        workloads = list(table)
        latency_us = np.array([table[workload] for workload in workloads], dtype=np.float64)
        sources = _helpful(sources, workloads, latency_us, seed)
        work = _work(workloads, sources)
        roofline = _fit_roofline(work, latency_us)
        floor_us = float(latency_us.min()) / 2
        base_us = np.maximum(work @ roofline, floor_us)
        inputs = _inputs(workloads, work)
        fit = fit_correction(inputs, np.log(latency_us / base_us), seed, _MARGIN)
        few = len(table) < max(_FEWEST_FOR_AN_ERROR, 1 + int(np.count_nonzero(roofline)))
        error = DEFAULT_ERROR if few else float(np.median(np.abs(fit.residuals)))
        return cls(roofline, floor_us, fit.correction, error, tuple(sources))

    def estimate_us(self, workloads: Sequence[Workload]) -> Array:
        """Latencies in microseconds, one a workload."""
        work = _work(workloads, self.sources)
        base_us = np.maximum(work @ self.roofline, self.floor_us)
        return np.asarray(base_us * np.exp(self.correction.predict(_inputs(workloads, work))))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        shape, known = np.split(self.roofline, [len(ROOFLINE_FEATURES)])
        return {
            "roofline": dict(zip(ROOFLINE_FEATURES, shape.tolist(), strict=True)),
            "floor_us": self.floor_us,
            "correction": self.correction.to_dict(),
            "error": self.error,
            "sources": [
                {
                    "coefficient": coefficient,
                    "device_name": one.device_name,
                    "code_hash": one.code_hash,
                    "kernels_us": one.to_dict(),
                }
                for one, coefficient in zip(self.sources, known.tolist(), strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "KernelModel":
        """Inverse of to_dict. Raises KeyError, TypeError, ValueError, BignasError."""
        coefficients = [float(values["roofline"][name]) for name in ROOFLINE_FEATURES]
        sources = values.get("sources", [])
        coefficients += [float(one["coefficient"]) for one in sources]
        return cls(
            roofline=np.array(coefficients),
            floor_us=float(values["floor_us"]),
            correction=Correction.from_dict(values["correction"]),
            error=float(values["error"]),
            sources=tuple(_source(one) for one in sources),
        )


def _source(values: Mapping[str, Any]) -> KernelTable:
    kernels = values["kernels_us"].items()
    return KernelTable(
        {Workload.from_key(key): float(latency_us) for key, latency_us in kernels},
        device_name=str(values["device_name"]),
        code_hash=str(values["code_hash"]),
    )


def _helpful(
    sources: Sequence[KernelTable], workloads: Sequence[Workload], latency_us: Array, seed: int
) -> Sequence[KernelTable]:
    """Return the sources when rooflines with them are better at kernels left out, else none.

    Better by more than a standard error of the mean difference.
    """
    if not sources or len(workloads) < _FEWEST_FOR_SOURCES:
        return ()
    folds = np.random.default_rng(seed).permutation(np.arange(len(workloads)) % _FOLDS)
    alone, together = (
        _held_out_errors(_work(workloads, some), latency_us, folds) for some in ((), sources)
    )
    gains = alone - together
    return sources if gains.mean() > gains.std() / math.sqrt(len(gains)) else ()


def _held_out_errors(work: Array, latency_us: Array, folds: Array) -> Array:
    """Absolute errors of the logarithm of each kernel, by rooflines fitted without it."""
    errors = np.zeros_like(latency_us)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        roofline = _fit_roofline(work[train], latency_us[train])
        estimates_us = np.maximum(work[test] @ roofline, latency_us[train].min() / 2)
        errors[test] = np.abs(np.log(estimates_us / latency_us[test]))
    return errors


def _work(workloads: Sequence[Workload], sources: Sequence[KernelTable]) -> Array:
    """Rows [n, roofline features and sources] of what the time is a sum of."""
    columns = [rough_latencies_us(one, workloads) for one in sources]
    return np.column_stack([roofline_features(workloads), *columns])


def _inputs(workloads: Sequence[Workload], work: Array) -> Array:
    """Rows [n, columns] that the correction depends on; `work` as `_work` gives it."""
    known = np.log(work[:, len(ROOFLINE_FEATURES) :])
    return np.column_stack([kernel_features(workloads), known])


def _fit_roofline(features: Array, latency_us: Array) -> Array:
    """Non-negative least squares of relative errors, on columns scaled to one.

    Work of a kind that no kernel has takes what it takes an ordinary core, compared by the others.
    """
    # it takes long to import, and predicting does without
    from scipy.optimize import nnls  # noqa: PLC0415

    scale = np.maximum(features.max(axis=0), 1.0)
    rows = features / scale / latency_us[:, None]
    coefficients, _ = nnls(rows, np.ones(len(rows)))
    roofline = np.asarray(coefficients / scale)
    shape = features[:, : len(_ORDINARY_CORE)]
    unseen = np.flatnonzero(~shape.any(axis=0))
    slower = float(np.median(latency_us / (shape @ _ORDINARY_CORE)))
    roofline[unseen] = slower * np.array(_ORDINARY_CORE)[unseen]
    return roofline


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
