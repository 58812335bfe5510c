"""What to measure next: the batch that makes the predictions of all candidates surest.

The predictor is taken for a Bayesian linear model on a basis: prior covariance of two candidates'
latencies is the dot product of their rows. Then what a measurement teaches does not depend on its
outcome, and a batch is chosen greedily: each time the candidate that reduces the summed variance
of all candidates most, for each unit of time that it costs (active learning by Cohn's criterion,
Cohn, "Neural network exploration using optimal experiment design", Neural Networks 9, 1996).

The most uncertain candidates (D-optimal design) would be extreme architectures; what counts here is
the certainty about ordinary ones.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

__all__ = ["next_batch"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_CANDIDATES = 1500  # considered in one batch, drawn at random
MAX_REFERENCES = 400  # whose variance is summed


def next_batch(
    basis: Array,
    measured: Indices,
    count: int,
    rng: np.random.Generator,
    noise: float,
    costs: Array | None = None,
    targets: Array | None = None,
) -> Indices:
    """Return the candidates to measure next, none of which was measured before, the best first.

    basis: [n, columns], a row for each candidate, scaled such that rows' dot products are the prior
    covariance; measured: indices of what was measured already; count: how many are wanted, fewer
    come back only when fewer are left; noise: variance of a measurement in the same unit; costs:
    [n] positive costs of measuring each candidate, all equal when left out; targets: [m, columns],
    rows of what is to become surer, the candidates themselves when left out.

    Raises ValueError for arrays that do not fit each other, costs or noise that are not positive.
    """
    n = len(basis)
    if basis.ndim != 2 or (costs is not None and costs.shape != (n,)):
        raise ValueError(f"a basis {basis.shape} does not fit its costs")
    if targets is None:
        targets = basis
    if targets.ndim != 2 or targets.shape[1] != basis.shape[1]:
        raise ValueError(f"a basis {basis.shape} does not fit its targets {targets.shape}")
    if not noise > 0 or (costs is not None and not (costs > 0).all()):
        raise ValueError("noise and costs must be positive")
    unmeasured = np.setdiff1d(np.arange(n), measured)
    count = min(count, len(unmeasured))
    drawn = rng.permutation(unmeasured)[: max(MAX_CANDIDATES, count)]
    references = targets[rng.permutation(len(targets))[:MAX_REFERENCES]]
    belief = _Belief(basis[drawn], references, basis[measured], noise)
    price = np.ones(len(drawn)) if costs is None else costs[drawn]
    free = np.ones(len(drawn), dtype=np.bool_)
    chosen: list[int] = []
    for _ in range(count):
        gain = np.where(free, belief.gains() / price, -np.inf)
        best = int(np.argmax(gain))
        chosen.append(best)
        free[best] = False
        belief.learn(best)
    return drawn[chosen]


class _Belief:
    """Posterior variances of places and their covariances with the references.

    What was measured before is taken into account at once, then one measurement a time.
    """

    def __init__(self, rows: Array, references: Array, measured: Array, noise: float) -> None:
        self._rows = rows
        self._noise = noise
        gram = measured @ measured.T + noise * np.eye(len(measured))
        factor = np.linalg.cholesky(gram)
        known = solve_triangular(factor, measured @ rows.T, lower=True)
        seen = solve_triangular(factor, measured @ references.T, lower=True)
        self._factors: list[Array] = list(known)  # rows of the partial Cholesky factor
        self._covariance = rows @ references.T - known.T @ seen  # [places, references]
        prior = np.einsum("ij,ij->i", rows, rows)
        self._variance = np.maximum(prior - np.einsum("ij,ij->j", known, known), 0)

    def gains(self) -> Array:
        """Reduction of the references' summed variance by measuring each place."""
        return np.asarray(
            np.einsum("ij,ij->i", self._covariance, self._covariance)
            / (self._variance + self._noise)
        )

    def learn(self, place: int) -> None:
        """Condition on a measurement of this place."""
        column = self._rows @ self._rows[place]
        for factor in self._factors:
            column -= factor * factor[place]
        scale = 1 / np.sqrt(self._variance[place] + self._noise)
        factor = column * scale
        self._covariance = self._covariance - np.outer(factor, self._covariance[place] * scale)
        self._variance = np.maximum(self._variance - factor**2, 0)
        self._factors.append(factor)
