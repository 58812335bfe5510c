"""How well a binary's latency is the same when it is measured again minutes later."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bignas.latency.metrics import deviation

__all__ = ["Repeatability"]

LOG_VARIANCE = math.pi**2 / 8  # of log |x| for a normally distributed x
LEAST_DIFFERENCE = 0.1  # of the median one: the logarithms of smaller ones would outweigh all


@dataclass(frozen=True)
class Repeatability:
    """The relative standard deviation of one measurement among others minutes apart; 0: not known.

    Big networks differ by more than small ones, as neighbours disturb the shared cache more than
    the core: a power of the latency, `deviation` for binaries that take `typical_ms`, up to what
    the longest one took.
    """

    deviation: float = 0.0
    exponent: float = 0.0
    typical_ms: float = 1.0
    longest_ms: float = 1.0

    @classmethod
    def of_differences(
        cls, latency_ms: Sequence[float], differences: Sequence[float]
    ) -> "Repeatability":
        """Estimate it from binaries measured twice: their milliseconds, log(second / first).

        There has to be at least one. Median differences tell it, as a few measurements are
        disturbed; the exponent is shrunk by as much of its square as chance explains.
        """
        log_ms, sizes = np.log(latency_ms), np.abs(differences)
        centre, typical = float(log_ms.mean()), float(np.median(sizes))
        x, exponent = log_ms - centre, 0.0
        squares = float(x @ x)
        if typical > 0 and squares > 0:
            exponent = float(x @ np.log(np.maximum(sizes, LEAST_DIFFERENCE * typical))) / squares
            by_chance = LOG_VARIANCE / squares
            exponent *= max(0.0, 1 - by_chance / exponent**2) if exponent else 0.0
        scaled = deviation(sizes / np.exp(exponent * x)) / math.sqrt(2)
        return cls(scaled, exponent, math.exp(centre), max(latency_ms))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Repeatability":
        """Inverse of `asdict`. Raises KeyError, TypeError or ValueError."""
        return cls(**{one.name: float(values[one.name]) for one in fields(cls)})

    def at(self, latency_ms: float) -> float:
        """Return that of binaries that take so long."""
        known_ms = min(latency_ms, self.longest_ms)
        return float(self.deviation * (known_ms / self.typical_ms) ** self.exponent)
