"""What kernels take in networks that were never measured, learned from those that were.

A kernel that runs between others is slower or faster than alone: its weights come from a core's own
cache, the shared one or memory, by what the rest of the network reads between its calls, and that
matters to some kernels more than to others. Each measured network tells of all its kernels at once,
so 80 networks give more than a thousand readings.

Decisions
- Boosted trees learn log(in the network / alone) from the bytes of weights that the whole network
  reads and from what the kernel is like, each reading weighed by what the kernel takes.
- What a kernel deviates by from that is its own: the mean of its readings' deviations in networks
  of similar size (Nadaraya, "On estimating regression", Theory of Probability and its Applications
  9, 1964), shrunk towards none, as if there were one more reading that shows none.
- Readings count as shares of what their network takes (`InNetworkReadings.scaled_to`).
- They are asked at a few sizes of networks, between which predictions are interpolated: so sums
  over parts of networks can be computed beforehand (`latency/network_sums.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.workload import Workload
from bignas.latency.features import kernel_features, weight_bytes
from bignas.latency.in_network_readings import InNetworkReadings
from bignas.latency.trees import Trees

__all__ = ["InNetworkModel"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

FEWEST_NETWORKS = 8
WIDTH_OCTAVES = 0.5  # of the weighting of a kernel's deviations by the size of their networks
PRIOR_READINGS = 1.0  # that show no deviation
MOST = math.log(2)  # of a reading's logarithm: more is a disturbance
SIZES = 25  # of networks
TREE_ROUNDS = 100
TREE_PARAMETERS = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_depth": 5,
    "eta": 0.06,
    "min_child_weight": 3,  # typical readings
    "subsample": 0.8,
    "colsample_bytree": 0.8,
    "lambda": 2.0,
    "max_bin": 128,
    "base_score": 0.0,
    "nthread": 1,
    "verbosity": 0,
}


class Deviation(NamedTuple):
    """What a kernel's reading in one network deviates by: log2 of the bytes it reads, logarithm."""

    log2_bytes: float
    log_ratio: float


@dataclass(frozen=True)
class InNetworkModel:
    """Predicts what kernels take in networks; without readings that is what they take alone."""

    trees: Trees | None = None
    deviations: Mapping[Workload, Sequence[Deviation]] = field(default_factory=dict)
    bytes_of: Mapping[Workload, int] = field(default_factory=dict)  # of weights that a run reads
    sizes: tuple[float, ...] = (0.0,)  # log2 of the bytes that networks read, ascending

    @classmethod
    def fit(
        cls,
        readings: InNetworkReadings,
        alone_us: Mapping[Workload, float],
        seed: int = 0,
    ) -> Self:
        """Fit to readings of those kernels whose latencies `alone_us` are known, in microseconds.

        Fewer than `FEWEST_NETWORKS` teach nothing.
        """
        calls = [
            (work, math.log2(max(1, one.read_bytes)), math.log(us / alone_us[work]))
            for one in readings.networks
            for work, us in one.latencies_us.items()
            if work in alone_us
        ]
        sizes = sorted({log2_bytes for _, log2_bytes, _ in calls})
        if len(readings.networks) < FEWEST_NETWORKS or not calls:
            return cls()
        works = [work for work, _, _ in calls]
        us = np.array([alone_us[one] for one in works])
        log2_bytes = np.array([one for _, one, _ in calls])
        targets = np.clip([one for _, _, one in calls], -MOST, MOST)
        plain = cls(bytes_of=readings.read_bytes)
        features = plain._features(works, us, log2_bytes)
        trees = Trees.grow(
            features, targets, {**TREE_PARAMETERS, "seed": seed}, TREE_ROUNDS, us / us.mean()
        )
        deviations: dict[Workload, list[Deviation]] = {}
        rest = targets - trees.predict(features)
        for work, size, one in zip(works, log2_bytes.tolist(), rest.tolist(), strict=True):
            deviations.setdefault(work, []).append(Deviation(size, one))
        grid = np.unique(np.linspace(sizes[0], sizes[-1], SIZES))
        return cls(trees, deviations, readings.read_bytes, tuple(grid.tolist()))

    def read_bytes(self, kernels: Sequence[Workload]) -> Array:
        """Bytes of weights that one run of each kernel reads: what its schedule makes of them."""
        return np.array([self.bytes_of.get(one, weight_bytes(one)) for one in kernels], np.float64)

    def latencies_us(self, kernels: Sequence[Workload], alone_us: Array) -> Array:
        """Microseconds of kernels in networks of each of `sizes`, [kernels, sizes]."""
        if self.trees is None:
            return np.repeat(alone_us[:, None], len(self.sizes), axis=1)
        count = len(self.sizes)
        works = [one for one in kernels for _ in self.sizes]
        features = self._features(
            works, np.repeat(alone_us, count), np.tile(self.sizes, len(kernels))
        )
        log_ratios = self.trees.predict(features).reshape(len(kernels), count)
        own = np.array([self._deviation(one) for one in kernels]).reshape(log_ratios.shape)
        return np.asarray(alone_us[:, None] * np.exp(log_ratios + own))

    def between(self, read_bytes: Array) -> tuple[Indices, Indices, Array]:
        """Return between which of `sizes` networks lie, and the share of the upper one."""
        log2_bytes = np.log2(np.maximum(read_bytes, 1.0))
        sizes = np.array(self.sizes)
        upper = np.clip(np.searchsorted(sizes, log2_bytes), 0, len(sizes) - 1)
        lower = np.maximum(upper - 1, 0)
        step = np.where(upper > lower, sizes[upper] - sizes[lower], 1.0)
        share = np.clip((log2_bytes - sizes[lower]) / step, 0.0, 1.0)
        return lower, upper, share

    def in_network_us(self, kernels: Sequence[Workload], alone_us: Array) -> Array:
        """Microseconds of the kernels of one network, which they make up together."""
        lower, upper, share = self.between(self.read_bytes(kernels).sum(keepdims=True))
        sized_us = self.latencies_us(kernels, alone_us)
        return np.asarray((1 - share) * sized_us[:, lower[0]] + share * sized_us[:, upper[0]])

    def _deviation(self, work: Workload) -> Array:
        """What the kernel itself deviates by, as a logarithm, in networks of each of `sizes`."""
        found = self.deviations.get(work)
        if not found:
            return np.zeros(len(self.sizes))
        at, log_ratios = (np.array(one) for one in zip(*found, strict=True))
        octaves = (np.array(self.sizes)[:, None] - at) / WIDTH_OCTAVES
        weights = np.exp(-(octaves**2) / 2)
        return np.asarray(weights @ log_ratios / (weights.sum(axis=1) + PRIOR_READINGS))

    def _features(self, works: Sequence[Workload], alone_us: Array, log2_bytes: Array) -> Array:
        """Rows of what a kernel is like and of the networks it stands in, each of n entries."""
        distinct = {one: place for place, one in enumerate(dict.fromkeys(works))}
        places = [distinct[one] for one in works]
        of_kernels = kernel_features(list(distinct))
        read = self.read_bytes(list(distinct))
        macs = np.array([one.macs for one in distinct], np.float64)
        return np.column_stack(
            [
                log2_bytes,
                np.log(alone_us),
                np.log1p(read[places]),
                read[places] / alone_us,
                macs[places] / alone_us,
                of_kernels[places],
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, in the order of the kernels' keys."""
        return {
            "trees": None if self.trees is None else self.trees.to_dict(),
            "sizes": list(self.sizes),
            "bytes_of": {one.key: self.bytes_of[one] for one in _ordered(self.bytes_of)},
            "deviations": {
                one.key: [list(each) for each in self.deviations[one]]
                for one in _ordered(self.deviations)
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises KeyError, TypeError, ValueError, BignasError."""
        sizes = tuple(float(one) for one in values["sizes"])
        if not sizes or list(sizes) != sorted(set(sizes)):
            raise ValueError("sizes of networks have to rise")
        return cls(
            trees=None if values["trees"] is None else Trees(values["trees"]),
            deviations={
                Workload.from_key(key): [Deviation(float(at), float(one)) for at, one in found]
                for key, found in values["deviations"].items()
            },
            bytes_of={Workload.from_key(key): int(one) for key, one in values["bytes_of"].items()},
            sizes=sizes,
        )


def _ordered(works: Mapping[Workload, Any]) -> list[Workload]:
    return sorted(works, key=lambda one: one.key)
