"""Whether two lists of numbers agree on the order of things."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["spearman"]


def spearman(
    first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]
) -> float:
    """Rank correlation; NaN when one side is constant or there are fewer than two values.

    Raises ValueError for lists of different lengths.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"expected two equally long lists, got {left.shape} and {right.shape}")
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")

    from scipy.stats import spearmanr  # noqa: PLC0415 - takes half a second to import

    return float(spearmanr(left, right).statistic)
