"""Intervals around predictions, calibrated on errors of predictions of what was left out.

They are conformal: quantiles of the errors made on networks left out of the fit, divided by what
makes an error likely: the part of the sum that is estimated. (Papadopoulos et al., "Normalized
nonconformity measures for regression with conformal prediction", AIA 2008; cross-validated
residuals as in Barber et al., "Predictive inference with the jackknife+", Annals of Statistics 49,
2021.) They never get narrower than without that division, see `Interval`. Below the number of
networks that a conformal quantile needs, Student's t takes its place; below three measured networks
the interval is +-25%, which is a convention and not a promise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # Student's t; scipy.stats takes seconds to import

__all__ = ["DEFAULT_HALF_WIDTH", "FEWEST_TO_CALIBRATE", "Interval"]

Array = NDArray[np.float64]

DEFAULT_HALF_WIDTH = math.log(1.25)  # of log latency when no network was measured
FEWEST_TO_CALIBRATE = 3  # measured networks
LEAST_VARIANCE = 0.8  # of that of the errors stays, however noisy their networks are
SMALLEST_BASE = 0.002  # errors below 0.2% are luck


@dataclass(frozen=True)
class Interval:
    """Half widths of log latency: `max(floor, quantile * (base + estimated share * kernel_error))`.

    Two conformal intervals, of which the wider one counts. The first has one width for all: right
    for networks that are no less measured than those of the calibration. The second grows with the
    estimated share: right for those that are less so.
    """

    floor: float
    base: float  # typical error of a network whose kernels are all measured
    kernel_error: float  # typical error of an estimated kernel
    quantile: float  # of the held-out errors divided by the typical ones

    @classmethod
    def calibrate(
        cls,
        residuals: Array,
        shares: Array,
        kernel_error: float,
        confidence: float,
        noise_variance: float = 0.0,
    ) -> "Interval":
        """Calibrate on held-out errors of log latency [n] and estimated shares [n]; n may be 0.

        `noise_variance` is how much more variance the logarithm has of what a binary is measured
        at than that of the networks in the calibration; below 0: less, as theirs are of fewer
        processes.
        """
        errors = np.abs(residuals)
        typical = float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0
        if typical > 0:
            errors = errors * math.sqrt(max(LEAST_VARIANCE, 1 + noise_variance / typical**2))
        if len(errors) < FEWEST_TO_CALIBRATE:
            floor = float(errors.max(initial=DEFAULT_HALF_WIDTH))
            return cls(floor, base=floor, kernel_error=kernel_error, quantile=1.0)
        excess = np.maximum(errors - shares * kernel_error, 0)
        base = max(float(np.median(excess)), SMALLEST_BASE)
        return cls(
            floor=_upper_quantile(errors, confidence),
            base=base,
            kernel_error=kernel_error,
            quantile=_upper_quantile(errors / (base + shares * kernel_error), confidence),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Interval":
        """Inverse of `asdict`. Raises KeyError, TypeError or ValueError."""
        return cls(**{one.name: float(values[one.name]) for one in fields(cls)})

    def half_widths(self, shares: Array) -> Array:
        """Half widths of log latency for networks with these estimated shares."""
        grown = self.quantile * (self.base + shares * self.kernel_error)
        return np.maximum(self.floor, grown)


def _upper_quantile(scores: Array, confidence: float) -> float:
    """The bound that a new score keeps with this confidence.

    Conformal where there are enough scores for it, else from Student's t around zero.
    """
    count = len(scores)
    rank = math.ceil((count + 1) * confidence)
    if rank <= count:
        return float(np.sort(scores)[rank - 1])
    spread = math.sqrt(float(np.mean(scores**2)) * (1 + 1 / count))
    return float(stdtrit(count - 1, (1 + confidence) / 2)) * spread
