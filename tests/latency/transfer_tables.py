"""Synthetic devices: latencies are sums over choices, and devices differ in the price of each."""

import numpy as np
from numpy.typing import NDArray

from bignas.latency.transfer_prior import TransferProblem

Array = NDArray[np.float64]

POSITIONS, OPTIONS, COUNT = 8, 4, 400
PARTITIONS = (
    np.tile(np.arange(OPTIONS), POSITIONS),
    np.repeat(np.arange(POSITIONS), OPTIONS),
)


def one_hot(seed: int = 0) -> Array:
    choices = np.random.default_rng(seed).integers(0, OPTIONS, (COUNT, POSITIONS))
    return np.eye(OPTIONS)[choices].reshape(COUNT, -1)


def device(features: Array, seed: int, own: float = 0.2, noise: float = 0.01) -> Array:
    """Latencies [n] in ms: common prices, times a factor per feature that is the device's own."""
    common = np.random.default_rng(1234).uniform(0.1, 1.0, features.shape[1])
    rng = np.random.default_rng(seed)
    prices = common * np.exp(own * rng.normal(size=features.shape[1]))
    latency_ms: Array = (1 + features @ prices) * np.exp(noise * rng.normal(size=len(features)))
    return latency_ms


def problem(features: Array, *sources: Array) -> TransferProblem:
    count = len(features)
    return TransferProblem(features, PARTITIONS, np.array(sources).reshape(len(sources), count))
