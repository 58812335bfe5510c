"""A Gaussian process whose kernel is a mixture of components in unknown shares.

With 20 measurements the shares of a dozen components cannot be estimated, so they are not: many
draws from their prior are fitted, each exactly, and averaged by how well they explain what was
measured (marginal likelihood; Rasmussen and Williams, "Gaussian processes for machine learning",
2006, section 5.2, summed instead of maximised). In each draw a component is missing with
probability one half, so that misleading ones fade out.

Noise is heavy-tailed: the variance of each measurement is reweighted as under Student's t, by
expectation maximisation (Lange et al., "Robust statistical modeling using the t distribution", JASA
84, 1989). A disturbed measurement loses its say.

Beyond MANY measurements the shares are found on MANY of them, and one process with their mean is
fitted to all.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.latency.transfer_prior import Component

__all__ = ["Mixture", "fit_mixture", "prior_weights"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

DRAWS = 2048
MISSING = 0.5  # probability that a component is missing in a draw
LOG_NOISE = (-4.0, 2.0)  # normal prior of the logarithm of the share of noise
CONSTANT = 100.0  # variance of the intercept
FREEDOM = 4.0  # degrees of freedom of the noise
ROUNDS = 8  # of expectation maximisation
MANY = 60


@dataclass(frozen=True, eq=False)
class Mixture:
    """The average of all fitted draws.

    mean: [n] predictions for all candidates, in the unit of the measurements. held_out: the
    predictions for the measured ones, each without itself. weights: mean share of each component.
    """

    mean: Array
    held_out: Array
    weights: Mapping[str, float]


def prior_weights(components: Mapping[str, Component]) -> dict[str, float]:
    """Return the share of each component that is expected before anything was measured."""
    return {name: float(np.exp(one.log_weight)) for name, one in components.items()}


def fit_mixture(components: Mapping[str, Component], measured: Indices, values: Array) -> Mixture:
    """Fit to the values [k] of the measured candidates; k is at least 1."""
    centre = float(np.median(values))
    scale = float(values.std()) or abs(centre) or 1.0
    targets = (values - centre) / scale
    rows = [one.columns[measured] for one in components.values()]
    grams = np.array([block @ block.T for block in rows])
    draws = _draw(components)
    if len(measured) > MANY:
        few = np.linspace(0, len(measured) - 1, MANY).astype(np.intp)
        posterior = _Posterior(*draws, grams[:, few][:, :, few], targets[few])
        draws = tuple((posterior.probability @ one)[None] for one in draws)
    weights, noise = draws
    posterior = _Posterior(weights, noise, grams, targets)
    # the weighted sum over draws of weight times dual coefficients, for each component
    duals = np.einsum("h,hc,hk->ck", posterior.probability, weights, posterior.duals)
    mean = np.full(len(next(iter(components.values())).columns), posterior.intercept)
    for dual, block, one in zip(duals, rows, components.values(), strict=True):
        mean += one.columns @ (block.T @ dual)
    shares = posterior.probability @ weights
    return Mixture(
        mean=centre + scale * mean,
        held_out=centre + scale * posterior.held_out,
        weights=dict(zip(components, shares.tolist(), strict=True)),
    )


def _draw(components: Mapping[str, Component]) -> tuple[Array, Array]:
    """Draws from the prior: shares [draws, components] and noise [draws]; always the same."""
    rng = np.random.default_rng(0)
    logs = np.column_stack(
        [rng.normal(one.log_weight, one.log_spread, DRAWS) for one in components.values()]
    )
    weights = np.exp(logs) * (rng.random(logs.shape) >= MISSING)
    return weights, np.exp(rng.normal(*LOG_NOISE, DRAWS))


class _Posterior:
    """Exact processes for all draws, with one common reliability for each measurement."""

    def __init__(self, weights: Array, noise: Array, grams: Array, targets: Array) -> None:
        count = len(targets)
        kernels = np.tensordot(weights, grams, 1) + CONSTANT
        inflation = np.ones(count)
        for step in range(ROUNDS):
            variance = noise[:, None] * inflation  # [draws, count]
            inverse = np.linalg.inv(kernels + variance[:, :, None] * np.eye(count))
            diagonal = np.diagonal(inverse, axis1=1, axis2=2)
            duals = inverse @ targets
            fit = duals @ targets
            # the scale of the process is integrated out under an inverse gamma prior
            evidence = 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * (count + 1) * np.log(
                (fit + 1) / 2
            )
            probability = np.exp(evidence - evidence.max())
            probability /= probability.sum()
            if step < ROUNDS - 1:
                level = (fit + 1) / (count + 1)
                residuals = (variance * duals) ** 2 / (noise * level)[:, None]
                uncertain = (variance - variance**2 * diagonal) / noise[:, None]
                inflation = (FREEDOM + probability @ (residuals + uncertain)) / (FREEDOM + 1)
        self.probability = probability
        self.duals = duals
        self.intercept = float(CONSTANT * (probability @ duals.sum(axis=1)))
        self.held_out = targets - probability @ (duals / diagonal)
