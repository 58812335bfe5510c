"""What a few networks tell about all: how much they are off, and how that grows with their weights.

Kernels alone find their weights where the measurement left them, in a network where the rest of it
did: so networks of few weights are faster than the sum of their kernels, large ones less or not at
all (docs/decisions.md, "A few networks tell a line"). Two numbers say most of it, and both are
known beforehand to be small, so a network or two are enough for a first guess: a Bayesian linear
model with normal priors, a level and a slope (Bishop, "Pattern recognition and machine learning",
2006, section 3.3).
"""

import math

import numpy as np
from numpy.typing import NDArray

from bignas.latency.regression import Correction, Fit, ModelKind, Ridge

__all__ = ["LEVEL_DEVIATION", "SLOPE_DEVIATION", "fit_weight_line"]

Array = NDArray[np.float64]

LEVEL_DEVIATION = 0.05  # of the logarithm of network / sum of its kernels, expected beforehand
SLOPE_DEVIATION = 0.02  # of its growth with each doubling of the weights
NOISE = 0.01  # of single networks around the line, standard deviation
BEYOND = 2 * math.log(2)  # of the weights that were seen, up to which the line goes on


def fit_weight_line(features: Array, column: int, targets: Array) -> Fit:
    """Fit the line to at least one network.

    features: [n, columns], of which one is the logarithm of the bytes of weights; targets: [n],
    logarithms of measured / estimated. The residuals are those of exact leave-one-out, by lines
    whose level has its prior at the same weights.
    """
    values = features[:, column]
    centre = float(values.mean())
    rows = np.column_stack(
        [
            np.full(len(values), LEVEL_DEVIATION),
            SLOPE_DEVIATION * (values - centre) / math.log(2),
        ]
    )
    gram = rows @ rows.T + NOISE**2 * np.eye(len(rows))
    inverse = np.linalg.inv(gram)
    duals = inverse @ targets
    level, slope = rows.T @ duals * (LEVEL_DEVIATION, SLOPE_DEVIATION / math.log(2))
    low, high = features.min(axis=0), features.max(axis=0)
    low[column] -= BEYOND
    high[column] += BEYOND
    weights = np.zeros(features.shape[1])
    weights[column] = slope
    ends = level + slope * (np.array([low[column], high[column]]) - centre)
    line = Ridge(
        intercept=float(level),
        weights=weights,
        centre=np.full_like(weights, centre),
        scale=np.ones_like(weights),
        low=low,
        high=high,
        least=float(ends.min()),
        most=float(ends.max()),
    )
    residuals = duals / np.diagonal(inverse)
    errors = {ModelKind.LINE: float(np.abs(residuals).mean())}
    return Fit(Correction(ModelKind.LINE, ridge=line), residuals, errors)
