"""What is believed about a new device before it is measured, as components of a linear model.

Latencies of a new device are expected to resemble those of known devices (sources) and physical
estimates such as MACs (estimates). Both are profiles: one value for each architecture, of any unit.
In which way they resemble is open, so each way is a component, a block of columns, and
`bignas.latency.mixture` finds out how much of each there is:

- `counts` and `columns`: any weight for each group of features, or each feature, without sources;
- of each kind of profile, split by ridge regression into a sum over the features and a rest:
  `mean` and `spread` of the sums, `raw` mean and `rest` of the whole profiles; estimates are free
  of noise, so that their `values` are taken as they are;
- the sums of the mean profile taken apart again, as a new device may be slower for one operator or
  in one stage: `scaled_*` allows a factor for each group of features, `each` one for each feature.

Features of one-hot kind work best: latencies are close to sums over an architecture's choices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import InputError

__all__ = ["Component", "TransferProblem", "components"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

RIDGE = 0.1  # per feature, against n standardised profiles
ABSURD_RATIO = 1e6  # between the latencies of one device


@dataclass(frozen=True, eq=False)
class TransferProblem:
    """The architectures that may be measured, and what is known about them.

    features: [n, d], numbers that describe each architecture, best one-hot.
    partitions: each an [d] array of group numbers that puts every feature into one group.
    sources_ms: [s, n] latencies on known devices, measured or predicted; s may be 0.
    estimates: [m, n] physical quantities that latencies may be proportional to; m may be 0.

    Raises InputError for shapes that do not fit and for values that are no latencies.
    """

    features: Array
    partitions: tuple[Integers, ...] = ()
    sources_ms: Array = field(default_factory=lambda: np.zeros((0, 0)))
    estimates: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or 0 in self.features.shape:
            raise InputError(f"features must be a filled table, not of shape {self.features.shape}")
        if not np.isfinite(self.features).all():
            raise InputError("features hold values that are not finite")
        for name, profiles in (("sources", self.sources_ms), ("estimates", self.estimates)):
            if len(profiles) and profiles.shape != (len(profiles), self.count):
                raise InputError(
                    f"{name} of shape {profiles.shape} do not fit {self.count} architectures"
                )
            if not np.isfinite(profiles).all():
                raise InputError(f"{name} hold values that are not finite")
        if (self.sources_ms <= 0).any() or (self.estimates < 0).any():
            raise InputError("latencies of sources must be positive, and estimates not negative")
        for row, source in enumerate(self.sources_ms):
            if source.max() > ABSURD_RATIO * source.min():
                raise InputError(f"latencies of source {row} differ by more than {ABSURD_RATIO:g}")
        if any(one.shape != self.features.shape[1:] for one in self.partitions):
            raise InputError("a partition must give a group to every feature")

    @property
    def count(self) -> int:
        """How many architectures there are."""
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Component:
    """One way in which latencies may vary.

    columns: [n, r], centred, rows of unit length on average. log_weight and log_spread: the normal
    prior of the logarithm of its share, relative to the variance of the measured latencies.
    """

    columns: Array
    log_weight: float
    log_spread: float


def components(problem: TransferProblem) -> Mapping[str, Component]:
    """Return the components by name; those that are constant are left out.

    The result does not depend on the order or the unit of the profiles.
    """
    features = problem.features
    found = {
        "counts": Component(_groups(features, problem.partitions[:1]), -2.0, 2.5),
        "columns": Component(features, -2.5, 2.0),
    }
    if len(problem.sources_ms):
        found |= _profile_components("source", problem, problem.sources_ms, _OF_SOURCES)
    if len(problem.estimates):
        found |= _profile_components("estimate", problem, problem.estimates, _OF_ESTIMATES)
    scaled = {
        name: Component(_normalised(one.columns), one.log_weight, one.log_spread)
        for name, one in found.items()
    }
    return {name: one for name, one in scaled.items() if one.columns.any()}


# Priors (log weight, its spread), chosen by leaving out whole families of devices.
_OF_SOURCES = {
    "mean": (0.7, 1.0),
    "raw": (0.0, 1.5),
    "spread": (-0.7, 1.5),
    "rest": (-3.0, 2.0),
    "scaled": (-2.0, 2.0),
    "each": (-3.0, 2.0),
}
_OF_ESTIMATES = {
    "values": (-2.0, 2.0),
    "scaled": (-2.5, 2.0),
    "each": (-3.0, 2.0),
}


def _profile_components(
    kind: str,
    problem: TransferProblem,
    profiles: Array,
    priors: Mapping[str, tuple[float, float]],
) -> dict[str, Component]:
    features = problem.features - problem.features.mean(axis=0)
    values = profiles.T - profiles.mean(axis=1)
    values = values / np.maximum(values.std(axis=0), 1e-12)
    gram = features.T @ features + RIDGE * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features.T @ values)  # [d, profiles]
    sums = features @ weights
    rest = values - sums
    split = problem.features * _contrasts(weights.mean(axis=1), problem)
    blocks = {
        "mean": sums.mean(axis=1, keepdims=True),
        "raw": values.mean(axis=1, keepdims=True),
        "values": values,
        "spread": sums - sums.mean(axis=1, keepdims=True),
        "rest": rest - rest.mean(axis=1, keepdims=True),
        "each": split,
    }
    for number in range(len(problem.partitions)):
        blocks[f"scaled_{number}"] = _groups(split, problem.partitions[number : number + 1])
    return {
        f"{kind}_{name}": Component(block, *priors[name.split("_")[0]])
        for name, block in blocks.items()
        if name.split("_")[0] in priors
    }


def _contrasts(weights: Array, problem: TransferProblem) -> Array:
    """Weights relative to the smallest of their group in the last partition.

    Features of one choice add up to one, so only differences between their weights have a meaning.
    """
    if not problem.partitions:
        return weights
    groups = np.unique(problem.partitions[-1], return_inverse=True)[1]
    lowest = np.full(groups.max() + 1, np.inf)
    np.minimum.at(lowest, groups, weights)
    return np.asarray(weights - lowest[groups])


def _groups(columns: Array, partitions: tuple[Integers, ...]) -> Array:
    """Sum the columns of each group; without partitions all columns are one group."""
    if not partitions:
        return np.asarray(columns.sum(axis=1, keepdims=True))
    groups = np.unique(partitions[0], return_inverse=True)[1]
    membership: Array = np.eye(groups.max() + 1)[groups]
    return columns @ membership


def _normalised(columns: Array) -> Array:
    centred = columns - columns.mean(axis=0)
    length = np.sqrt((centred**2).sum(axis=1).mean())
    constant = length <= 1e-9 * (1 + np.abs(columns).max())
    return np.zeros_like(centred) if constant else np.asarray(centred / length)
