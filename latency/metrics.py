"""How good are predicted latencies? Pure functions over arrays of equal length.

Shares are fractions from 0 to 1. An empty or mismatched input is a programming error: ValueError.
"""

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bignas.supernet.ranking import spearman

__all__ = [
    "Values",
    "agreeing",
    "agreeing_mean",
    "coverage",
    "deviation",
    "mape",
    "spearman",
    "spread",
    "within",
]

Values: TypeAlias = Sequence[float] | NDArray[np.float64]

DISTURBED = 0.05  # above another measurement of the same thing, as a fraction
NORMAL_MEDIAN = 0.6745  # of the absolute values of a normal distribution, in deviations


def mape(predicted: Values, measured: Values) -> float:
    """Mean absolute percentage error, as a fraction of the measured value."""
    return float(_relative_errors(predicted, measured).mean())


def within(predicted: Values, measured: Values, tolerance: float) -> float:
    """Share of predictions no further than `tolerance` (0.1 is 10%) from the measured value."""
    return float((_relative_errors(predicted, measured) <= tolerance).mean())


def coverage(low: Values, high: Values, measured: Values) -> float:
    """Share of measured values inside their interval [low, high]."""
    lower, value = _paired(low, measured)
    upper, _ = _paired(high, measured)
    return float(((lower <= value) & (value <= upper)).mean())


def _relative_errors(predicted: Values, measured: Values) -> NDArray[np.float64]:
    first, second = _paired(predicted, measured)
    if (second <= 0).any():
        raise ValueError("measured latencies must be positive")
    return np.abs(first - second) / second


def _paired(first: Values, second: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or len(left) == 0:
        raise ValueError(f"expected two equally long lists, got {left.shape} and {right.shape}")
    return left, right


def agreeing(repeated: Values) -> list[float]:
    """Those of repeated measurements that agree: the most that lie within `DISTURBED`.

    Of as many the least ones: what disturbs makes slower more often than faster.
    """
    ascending = sorted(repeated)
    groups = [
        [one for one in ascending[first:] if one <= least * (1 + DISTURBED)]
        for first, least in enumerate(ascending)
    ]
    return max(groups, key=len)


def agreeing_mean(repeated: Values) -> float:
    """Mean of those of repeated measurements that agree."""
    return float(np.mean(agreeing(repeated)))


def deviation(distances: Values) -> float:
    """Return the standard deviation that the median of distances from the centre tells."""
    return float(np.median(np.abs(distances))) / NORMAL_MEDIAN


def spread(repeated_ms: NDArray[np.float64]) -> float:
    """Return the relative standard deviation of repeated measurements [n, repetitions].

    That of the same thing measured again, the typical one of all n; 0 for fewer than two
    repetitions. Shortest halves tell it, so that less than half of the repetitions may be
    disturbed, as for their median: Rousseeuw and Leroy, "A robust scale estimator based on the
    shortest half", Statistica Neerlandica 42, 1988.
    """
    repetitions = repeated_ms.shape[1]
    if repetitions < 2:
        return 0.0
    typical = float(np.median(_shortest_halves(np.log(repeated_ms))))
    return typical / _normal_shortest_half(repetitions)


def _shortest_halves(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shortest distances [n] that hold more than half of the values [n, m] of a row."""
    ascending = np.sort(values, axis=1)
    rest = values.shape[1] // 2
    return np.asarray((ascending[:, rest:] - ascending[:, : values.shape[1] - rest]).min(axis=1))


@cache
def _normal_shortest_half(count: int) -> float:
    """Return that of so many normal values, the median of many draws, in standard deviations."""
    draws = np.random.default_rng(0).normal(size=(20_000, count))
    return float(np.median(_shortest_halves(draws)))
