"""Predicting the latency of a network that was never measured, with an interval to trust.

Decisions
- The binary is a sequence of fused kernels, so its latency is close to the sum of theirs. Kernels
  come from the table of measurements, or from `KernelModel` where profiling stopped early. What the
  sum misses is learned from measured networks: first what each kernel takes among others, where
  kernels were measured in networks (`latency/in_network_model.py`), then log(measured / sum) as a
  whole, a `Correction`, which may be none at all. Cross-validation picks both, so few networks do
  no harm.
- Intervals come from the errors made on networks left out of the fit (`latency/interval.py`).
- A saved predictor is complete (space, table, models) and JSON; it knows the device and the kernel
  code it was made for, and refuses others.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes seconds to import

from bignas.compile.fusion import choose_kernels
from bignas.compile.workload import workloads
from bignas.device_db.errors import BignasError, InputError
from bignas.device_db.files import write_atomically
from bignas.device_db.workload import Workload
from bignas.latency.in_network_model import InNetworkModel
from bignas.latency.in_network_readings import InNetworkReadings
from bignas.latency.interval import DEFAULT_HALF_WIDTH, FEWEST_TO_CALIBRATE, Interval
from bignas.latency.kernel_model import KernelModel, KernelTable, estimate_kernels
from bignas.latency.network_fit import MICROSECONDS_PER_MILLISECOND, NetworkFit, fit_networks
from bignas.latency.network_sums import NetworkSums, SpaceSums, network_features
from bignas.latency.regression import Correction, ModelKind
from bignas.latency.repeatability import Repeatability
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["KernelLatency", "LatencyPredictor", "Predictions"]

Array = NDArray[np.float64]

FORMAT = "bignas-latency-predictor"
FORMAT_VERSION = 4


@dataclass(frozen=True, eq=False)
class Predictions:
    """Latencies of n networks in milliseconds, each array with n entries."""

    latency_ms: Array
    low_ms: Array  # lower end of the interval
    high_ms: Array  # upper end of the interval
    estimated_share: Array  # share of the kernel sum that was not measured, from 0 to 1


@dataclass(frozen=True)
class KernelLatency:
    """One kernel of a network: what it takes, in networks if that is known, and if measured."""

    workload: Workload
    latency_us: float
    measured: bool


@dataclass(frozen=True, eq=False)
class LatencyPredictor:
    """Predicts latencies of the architectures of one space on one device.

    Made by `fit` or `load`; never changes.
    """

    space: SearchSpace
    table: KernelTable
    kernel_model: KernelModel
    correction: Correction  # of log(network / sum of its kernels in it), on network_features
    interval: Interval  # also of what changes until a binary is measured
    confidence: float  # share of networks that the intervals are to cover
    networks: int  # measured networks it was fitted to
    repeatability: Repeatability = field(default_factory=Repeatability)
    within: InNetworkModel = field(default_factory=InNetworkModel)  # what kernels take there
    settled: Interval | None = None  # where the machine's drift is known; None: as `interval`
    _sums: SpaceSums = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must lie between 0 and 1, not {self.confidence:g}")
        object.__setattr__(self, "_sums", self._sums_with(self.within))

    def _sums_with(self, within: InNetworkModel) -> SpaceSums:
        return SpaceSums(
            self.space,
            estimate=lambda work: estimate_kernels(self.table, self.kernel_model, work),
            choose=lambda layers: choose_kernels(layers, self.table),
            within=within,
        )

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        table: KernelTable,
        networks: Sequence[tuple[Architecture, float]],
        confidence: float = 0.9,
        seed: int = 0,
        sources: Sequence[KernelTable] = (),
    ) -> "LatencyPredictor":
        """Fit to measured kernels and measured networks (architecture, milliseconds).

        Of a network measured several times the median counts. No networks at all are allowed: the
        prediction then is the plain sum of the kernels. Raises InputError for an empty table, a
        latency that is not positive or a confidence outside 0..1, ArchitectureError for a network
        outside the space.
        """
        return cls.of_kernels(space, table, confidence, seed, sources).corrected(networks, seed)

    @classmethod
    def of_kernels(
        cls,
        space: SearchSpace,
        table: KernelTable,
        confidence: float = 0.9,
        seed: int = 0,
        sources: Sequence[KernelTable] = (),
    ) -> "LatencyPredictor":
        """Fit to measured kernels alone: the prediction is their plain sum.

        `sources` are other devices, from which kernels that were not measured are estimated too.
        Raises InputError for an empty table or a confidence outside 0..1.
        """
        return cls(
            space=space,
            table=table,
            kernel_model=KernelModel.fit(table, seed, sources),
            correction=Correction(ModelKind.ZERO),
            interval=Interval(DEFAULT_HALF_WIDTH, DEFAULT_HALF_WIDTH, 0.0, 1.0),
            confidence=confidence,
            networks=0,
        )

    def corrected(
        self,
        networks: Sequence[tuple[Architecture, float]],
        seed: int = 0,
        noise_variance: float = 0.0,
        own_variance: float = 0.0,
        readings: InNetworkReadings | None = None,
    ) -> "LatencyPredictor":
        """Return the same kernels with correction and interval fitted to networks, as in `fit`.

        `noise_variance` is how much more variance the logarithm has of what a binary is measured at
        than that of these latencies, `own_variance` that part of it which is no drift of the whole
        machine, below 0 for less; `readings` are what kernels took in networks.
        """
        architectures, _, fit = self._fit(networks, readings, seed)
        interval, settled = (
            Interval.calibrate(
                fit.residuals, fit.estimated_share, self.kernel_model.error, self.confidence, one
            )
            for one in (noise_variance, own_variance)
        )
        return replace(
            self,
            correction=fit.correction,
            within=fit.within,
            interval=interval,
            settled=settled,
            networks=len(architectures),
        )

    def held_out_ms(
        self,
        networks: Sequence[tuple[Architecture, float]],
        seed: int = 0,
        readings: InNetworkReadings | None = None,
    ) -> dict[Architecture, float]:
        """Return what each of these networks is predicted by the others, in milliseconds.

        With the kernels as they are, alone. Raises as `fit`.
        """
        architectures, measured_ms, fit = self._fit(networks, readings, seed)
        predicted_ms = measured_ms * np.exp(-fit.residuals)
        return dict(zip(architectures, predicted_ms.tolist(), strict=True))

    def _fit(
        self,
        networks: Sequence[tuple[Architecture, float]],
        readings: InNetworkReadings | None,
        seed: int,
    ) -> tuple[list[Architecture], Array, NetworkFit]:
        architectures, measured_ms = _medians(self.space, networks)
        fit = fit_networks(
            self.space, self._sums_with, self.table, architectures, measured_ms, readings, seed
        )
        return architectures, measured_ms, fit

    def conditioned(self, networks: Sequence[tuple[Architecture, float]]) -> "LatencyPredictor":
        """Return it shifted to what these networks (architecture, milliseconds) were measured at.

        For networks that resemble those it is asked about next: what they all deviate by is the
        region's, or the day's, and a fit to networks of the whole space would hardly follow. The
        shift is the median logarithm of measured / predicted, shrunk by n / (n + 1), as by a prior
        for which regions deviate from the prediction about as much as networks of one region from
        each other. From some networks on, intervals are those of fresh networks measured at the
        same time as those of the fit. Raises InputError for a latency that is not positive,
        ArchitectureError for a network outside the space.
        """
        if not networks:
            return self
        architectures, measured_ms = _medians(self.space, networks)
        log_ratios = np.log(measured_ms / self.predict(architectures).latency_ms)
        shift = float(np.median(log_ratios)) * len(log_ratios) / (len(log_ratios) + 1)
        shifted = self.shifted(shift)
        known = len(log_ratios) >= FEWEST_TO_CALIBRATE
        return shifted if known else replace(shifted, interval=self.interval)

    def shifted(self, log_ratio: float) -> "LatencyPredictor":
        """Return it with all predictions shifted by what the machine is known to be off by now.

        Intervals are those of networks measured at the same time as those of the fit.
        """
        correction = self.correction.shifted(log_ratio)
        return replace(self, correction=correction, interval=self.settled or self.interval)

    # --- predicting -------------------------------------------------------------------------------

    def predict(self, architectures: Sequence[Architecture]) -> Predictions:
        """Predict many at once; that is far faster than one by one.

        The architectures have to lie in the space (`SearchSpace.check` them at the edge).
        """
        sums = self._sums(architectures)
        log_ratio = self.correction.predict(network_features(sums))
        latency_ms = sums.within_us * np.exp(log_ratio) / MICROSECONDS_PER_MILLISECOND
        factor = np.exp(self.interval.half_widths(sums.estimated_share))
        return Predictions(
            latency_ms=latency_ms,
            low_ms=latency_ms / factor,
            high_ms=latency_ms * factor,
            estimated_share=sums.estimated_share,
        )

    def quantile_ms(self, architectures: Sequence[Architecture], level: float) -> Array:
        """Latencies in milliseconds that the networks keep with probability `level`, one-sided.

        At (1 + confidence) / 2 it is the upper end of the calibrated interval; other levels follow
        from it by Student's t with the degrees of freedom of the measured networks. Raises
        InputError for a level outside 0..1.
        """
        if not 0 < level < 1:
            raise InputError(f"confidence must lie between 0 and 1, not {level:g}")
        latency_ms, scale = self._centre_and_scale(architectures)
        return np.asarray(latency_ms * np.exp(scale * stdtrit(self._freedom, level)))

    def probability_within(self, architectures: Sequence[Architecture], limit_ms: float) -> Array:
        """Probabilities that the networks take at most `limit_ms`; the inverse of `quantile_ms`."""
        latency_ms, scale = self._centre_and_scale(architectures)
        return np.asarray(stdtr(self._freedom, np.log(limit_ms / latency_ms) / scale))

    @property
    def _freedom(self) -> int:
        return max(self.networks, FEWEST_TO_CALIBRATE) - 1

    def _centre_and_scale(self, architectures: Sequence[Architecture]) -> tuple[Array, Array]:
        """Latencies in milliseconds, and the scales of log latency in units of Student's t."""
        predictions = self.predict(architectures)
        half_widths = self.interval.half_widths(predictions.estimated_share)
        return predictions.latency_ms, half_widths / stdtrit(
            self._freedom, (1 + self.confidence) / 2
        )

    def sums(self, architectures: Sequence[Architecture]) -> NetworkSums:
        """Sums over the kernels of each architecture, from which everything else follows."""
        return self._sums(architectures)

    def kernel_sums_ms(self, architectures: Sequence[Architecture]) -> Array:
        """The plain sums of the kernels, before any correction, in milliseconds."""
        return self._sums(architectures).latency_us / MICROSECONDS_PER_MILLISECOND

    def kernels(self, architecture: Architecture) -> list[KernelLatency]:
        """The kernels of one network in the order in which they run, with their latencies.

        What they take among each other, as far as networks told; predictions are corrections of
        their sum.
        """
        works = choose_kernels(workloads(self.space, architecture), self.table)
        estimates = estimate_kernels(self.table, self.kernel_model, works)
        within_us = self.within.in_network_us(works, estimates.latency_us)
        return [
            KernelLatency(work, float(us), bool(measured))
            for work, us, measured in zip(works, within_us, estimates.measured, strict=True)
        ]

    # --- what it is good for ----------------------------------------------------------------------

    def check_matches(
        self,
        space: SearchSpace,
        device_name: str,
        code_hash: str,
        machine_digest: str | None = None,
        runtime: str | None = None,
    ) -> None:
        """Raise InputError when it was fitted for another space, device or version of the kernels.

        The machine behind the device's name and the runtime are compared where both sides know
        theirs. The number of classes may differ: only the last kernel depends on it (see
        `for_space`).
        """
        reasons = []
        if space.with_classes(self.space.classes).digest != self.space.digest:
            reasons.append(f"the search space {space.name!r} has changed")
        if device_name != self.table.device_name:
            reasons.append(f"it was fitted for device {self.table.device_name!r}")
        if code_hash != self.table.code_hash:
            reasons.append("the kernels or the way to measure them have changed since then")
        if _differ(machine_digest, self.table.machine_digest):
            reasons.append(f"device {device_name!r} is another machine or target now")
        if _differ(runtime, self.table.runtime):
            reasons.append(f"it was measured with {self.table.runtime}, this is {runtime}")
        if reasons:
            raise InputError(
                f"the latency predictor is stale: {' and '.join(reasons)};"
                f" run `bignas predictor fit SPACE --device {device_name}`"
            )

    def for_space(self, space: SearchSpace) -> "LatencyPredictor":
        """Return the same predictor for a space that differs in name and classes at most.

        Raises InputError for any other space.
        """
        self.check_matches(space, self.table.device_name, self.table.code_hash)
        return replace(self, space=space)

    # --- saving -----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """JSON text, the same for equal predictors."""
        content = {
            "space": self.space.to_dict(),
            "space_digest": self.space.digest,
            "device_name": self.table.device_name,
            "code_hash": self.table.code_hash,
            "machine_digest": self.table.machine_digest,
            "runtime": self.table.runtime,
            "kernels_us": self.table.to_dict(),
            "within": self.within.to_dict(),
            "table_digest": self.table.digest,
            "kernel_model": self.kernel_model.to_dict(),
            "correction": self.correction.to_dict(),
            "interval": asdict(self.interval),
            "settled": None if self.settled is None else asdict(self.settled),
            "confidence": self.confidence,
            "networks": self.networks,
            "repeatability": asdict(self.repeatability),
        }
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "sha256": _content_hash(content),
            "content": content,
        }
        return json.dumps(document, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "LatencyPredictor":
        """Inverse of `to_bytes`. Raises InputError for a foreign, damaged or newer file."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a latency predictor, or a damaged one: {error}") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InputError("not a latency predictor, but some other JSON file")
        version = document.get("version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"the latency predictor has format version {version!r}, this bignas reads"
                f" {FORMAT_VERSION}; upgrade bignas or run `bignas predictor fit` again"
            )
        damaged = "the latency predictor is damaged; run `bignas predictor fit` again"
        content = document.get("content")
        if not isinstance(content, dict) or document.get("sha256") != _content_hash(content):
            raise InputError(damaged)
        try:
            return cls._from_content(content)
        except (KeyError, TypeError, ValueError, BignasError) as error:
            raise InputError(f"{damaged} ({type(error).__name__}: {error})") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> "LatencyPredictor":
        kernels = content["kernels_us"].items()
        table = KernelTable(
            {Workload.from_key(key): float(latency_us) for key, latency_us in kernels},
            device_name=str(content["device_name"]),
            code_hash=str(content["code_hash"]),
            machine_digest=_text_or_none(content.get("machine_digest")),
            runtime=_text_or_none(content.get("runtime")),
        )
        settled = content.get("settled")
        return cls(
            space=SearchSpace.from_dict(content["space"]),
            table=table,
            kernel_model=KernelModel.from_dict(content["kernel_model"]),
            correction=Correction.from_dict(content["correction"]),
            interval=Interval.from_dict(content["interval"]),
            settled=None if settled is None else Interval.from_dict(settled),
            confidence=float(content["confidence"]),
            networks=int(content["networks"]),
            repeatability=Repeatability.from_dict(content["repeatability"]),
            within=InNetworkModel.from_dict(content["within"]),
        )

    def save(self, path: Path) -> None:
        """Write it to a file. Raises OutputError."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> "LatencyPredictor":
        """Read it from a file. Raises InputError naming the file."""
        try:
            return cls.from_bytes(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"cannot read the latency predictor {path}: {error.strerror or error};"
                f" `bignas predictor fit` makes one"
            ) from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _medians(
    space: SearchSpace, networks: Sequence[tuple[Architecture, float]]
) -> tuple[list[Architecture], Array]:
    """Distinct architectures with the median of their latencies in milliseconds."""
    samples: dict[Architecture, list[float]] = {}
    for architecture, measured_ms in networks:
        space.check(architecture)
        if not (math.isfinite(measured_ms) and measured_ms > 0):
            raise InputError(f"a measured latency must be positive, not {measured_ms} ms")
        samples.setdefault(architecture, []).append(measured_ms)
    medians = [float(np.median(values)) for values in samples.values()]
    return list(samples), np.array(medians, dtype=np.float64)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _differ(present: str | None, fitted: str | None) -> bool:
    return present is not None and fitted is not None and present != fitted


def _content_hash(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
