"""Latencies of a new device from a handful of measurements and what is known of other devices.

The measurements are chosen in batches (`bignas.latency.active`), the more is known of how the new
device resembles the others the better (`bignas.latency.mixture`). Where there are many
measurements, a correction is learned on top, trees included, if cross-validation finds that it
pays (`bignas.latency.regression`). No step knows names of devices, operators or spaces.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import InputError
from bignas.latency.active import next_batch
from bignas.latency.mixture import MANY, fit_mixture, prior_weights
from bignas.latency.regression import fit_correction
from bignas.latency.transfer_prior import Component, TransferProblem, components

__all__ = ["Transfer", "choose_batch", "transfer"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

BATCH = 5
DESIGN_NOISE = 0.05  # of a measurement, as a share of the latencies' variance


@dataclass(frozen=True, eq=False)
class Transfer:
    """What was measured and what follows.

    latency_ms: [n] predictions for all architectures, positive. measured: indices in the order in
    which they were measured. weights: mean share of each component of the prior.
    """

    latency_ms: Array
    measured: Indices
    measured_ms: Array
    weights: Mapping[str, float]


def transfer(
    problem: TransferProblem,
    measure: Callable[[Indices], Array],
    samples: int,
    seed: int,
    costs: Array | None = None,
    chosen: Indices | None = None,
) -> Transfer:
    """Measure `samples` architectures on the new device and predict all.

    measure: from indices of architectures to their latencies in milliseconds. costs: [n] what
    measuring each costs; equal when left out. chosen: the architectures to measure, when they are
    not to be chosen here. Raises InputError for latencies that are not positive and finite.
    """
    if not 1 <= samples <= problem.count:
        raise InputError(f"{samples} samples of {problem.count} architectures cannot be measured")
    parts = components(problem)
    rng = np.random.default_rng(seed)
    measured = np.zeros(0, dtype=np.intp)
    measured_ms = np.zeros(0)
    while len(measured) < samples:
        if chosen is None:
            size = min(max(BATCH, len(measured) // 2), samples - len(measured))
            batch = choose_batch(parts, measured, measured_ms, size, rng, costs)
        else:
            batch = chosen[:samples]
        measured = np.concatenate([measured, batch])
        measured_ms = np.concatenate([measured_ms, _checked(measure(batch), len(batch))])
    mixture = fit_mixture(parts, measured, measured_ms)
    predicted_ms = _positive(mixture.mean, measured_ms)
    if len(measured) > MANY:
        inputs = np.column_stack([problem.features, *(np.log(one) for one in problem.sources_ms)])
        held_out_ms = _positive(mixture.held_out, measured_ms)
        fit = fit_correction(inputs[measured], np.log(measured_ms / held_out_ms), seed)
        predicted_ms = predicted_ms * np.exp(fit.correction.predict(inputs))
    return Transfer(predicted_ms, measured, measured_ms, mixture.weights)


def choose_batch(
    parts: Mapping[str, Component],
    measured: Indices,
    measured_ms: Array,
    count: int,
    rng: np.random.Generator,
    costs: Array | None = None,
) -> Indices:
    """Return the next architectures to measure, given those measured so far (none at first).

    Half of the belief is the prior's, so that a few measurements do not narrow the view.
    """
    weights = _shares(prior_weights(parts))
    if len(measured):
        learned = _shares(fit_mixture(parts, measured, measured_ms).weights)
        weights = {name: (weights[name] + learned[name]) / 2 for name in weights}
    blocks = [np.sqrt(weights[name]) * part.columns for name, part in parts.items()]
    basis = np.column_stack([np.ones(len(blocks[0])), *blocks])
    return next_batch(basis, measured, count, rng, DESIGN_NOISE, costs)


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values()) or 1.0
    return {name: weight / total for name, weight in weights.items()}


def _checked(latency_ms: Array, count: int) -> Array:
    if latency_ms.shape != (count,) or not (np.isfinite(latency_ms) & (latency_ms > 0)).all():
        raise InputError("a measured latency must be a positive number of milliseconds")
    return latency_ms


def _positive(latency_ms: Array, measured_ms: Array) -> Array:
    """Bend predictions below half the least measured latency so that they stay above zero."""
    floor = measured_ms.min() / 2
    bent = floor * np.exp(np.minimum(latency_ms / floor - 1, 0))
    return np.where(latency_ms < floor, bent, latency_ms)
