"""A quadratic function of an architecture's options, fitted by ridge regression.

Main effects, curvature and all pairwise interactions of the dimensions: what the accuracy and the
logarithm of the latency of a child mostly consist of, and two matrix products for any number of
architectures.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.latency.regression import Ridge
from bignas.search.neighbours import Rows

__all__ = ["Quadratic"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """`constant + u @ linear + u @ products @ u` of a row's options u, scaled to 0..1."""

    sizes: tuple[int, ...]
    constant: float
    linear: Array  # [dimensions]
    products: Array  # [dimensions, dimensions]
    spread: float  # standard deviation of what it does not explain, on the rows of the fit

    @classmethod
    def fit(cls, rows: Rows, targets: Array, sizes: tuple[int, ...]) -> "Quadratic":
        """Fit to rows of option numbers [n, dimensions] and targets [n]; n is at least 1."""
        scaled = _scaled(rows, sizes)
        first, second = np.triu_indices(len(sizes))
        features = np.concatenate([scaled, scaled[:, first] * scaled[:, second]], axis=1)
        ridge = Ridge.fit(features, targets)
        slopes = np.divide(
            ridge.weights, ridge.scale, out=np.zeros_like(ridge.weights), where=ridge.scale > 0
        )
        products = np.zeros((len(sizes), len(sizes)))
        products[first, second] = slopes[len(sizes) :]
        constant = ridge.intercept - float(ridge.centre @ slopes)
        fitted = cls(sizes, constant, slopes[: len(sizes)], products, 0.0)
        errors = targets - fitted.predict(rows)
        return cls(sizes, constant, fitted.linear, products, float(np.sqrt(np.mean(errors**2))))

    def predict(self, rows: Rows) -> Array:
        """Values of rows of option numbers [n, dimensions] -> [n]."""
        scaled = _scaled(rows, self.sizes)
        curved = np.einsum("ij,ij->i", scaled @ self.products, scaled)
        return np.asarray(self.constant + scaled @ self.linear + curved)


def _scaled(rows: Rows, sizes: tuple[int, ...]) -> Array:
    return rows / (np.array(sizes, dtype=np.float64) - 1)
