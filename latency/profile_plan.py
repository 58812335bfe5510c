"""What profiling measures next: kernels or whole subnets, whichever promises most for its time.

Both are measured to make the predictions of random architectures surer, so one criterion chooses
among both (`bignas.latency.active`), on a linear model of relative errors with two blocks:

- An architecture's kernel sum is wrong by what its unmeasured kernels are estimated wrong, each
  weighted by how often the architecture has it. Kernels of similar shape are taken to be estimated
  wrong alike (squared exponential covariance of their features, plus a part of their own), so one
  of them teaches something about the others.
- The whole network is off its kernel sum by a factor that depends on its weights
  (`latency/weight_line.py`) and on the options chosen.

Of the best measurements those of the same kind as the very best one make up the batch: kernels, or
subnets, or of subnets that lack kernels these kernels; then there is a new plan.

Measuring a subnet costs more than a kernel, and as much again as tuning what it still lacks: early
on subnets of known kernels are cheap, and kernels that many subnets need come first.

Plans are pure functions of what was measured. An interrupted profile that is taken up again goes on
as the uninterrupted one would have.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.compile.fusion import choose_kernels, kernel_options
from bignas.compile.workload import workloads
from bignas.device_db.workload import Workload
from bignas.latency.active import next_batch
from bignas.latency.features import kernel_features, weight_bytes
from bignas.latency.kernel_model import rough_latencies_us
from bignas.latency.subnets import spread_sample
from bignas.latency.weight_line import LEVEL_DEVIATION, SLOPE_DEVIATION
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["Batch", "ProfilePlanner"]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

REFERENCES = 300  # random architectures whose predictions are to become surer
BATCH = 24  # measurements planned at once, at most
FIRST_BATCH = 6  # as long as little is known
GROWTH = 16  # measurements that are there for each one in a batch, once that is more
SUBNET_BATCH = 10  # subnets among them, at most
SUBNET_COST = 3.0  # seconds of a subnet's measurement, in those of tuning a kernel

# Prior standard deviations, as shares of the latency, and the shape of the kernels' covariance.
KERNEL_ERROR = 0.15  # of the estimate of a kernel of median latency; larger ones are surer
OWN_SHARE = 0.3  # of a kernel's variance that no similar kernel tells anything about
SIMILAR = 6.0  # distance of standardised features within which kernels are alike
OPTION_ERROR = 0.01  # of what options change about the factor between networks and kernel sums
SUBNET_NOISE = 0.005
KERNEL_NOISE = 0.03  # of a kernel's measurement, in standard deviations of its prior


@dataclass(frozen=True, slots=True)
class Batch:
    """What to measure next, either kernels or subnets; both are empty when nothing is left."""

    kernels: tuple[Workload, ...]
    subnets: tuple[Architecture, ...]

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.kernels or self.subnets)


class ProfilePlanner:
    """Plans the profile of one space on any device.

    kernels: all kernels of the space; subnets: how many subnets are wanted in the end; candidates:
    which they may be, when left out `subnets` architectures spread over the space and as many
    random ones.
    """

    def __init__(
        self,
        space: SearchSpace,
        kernels: Sequence[Workload],
        subnets: int,
        candidates: Sequence[Architecture] | None = None,
    ) -> None:
        self._kernels = list(kernels)
        self._numbers = {kernel: number for number, kernel in enumerate(kernels)}
        self._subnets = subnets
        random = np.random.default_rng(0)
        references = [space.sample(random) for _ in range(REFERENCES)]
        if candidates is None:
            spread = spread_sample(space, max(subnets, SUBNET_BATCH), random)
            candidates = [*spread, *(space.sample(random) for _ in spread)]
        self.candidates = list(dict.fromkeys(candidates))
        self._references = self._networks(references, space)
        self._candidates = self._networks(self.candidates, space)
        self._similarity = np.linalg.cholesky(_similarity(self._kernels))
        options = space.option_values([*references, *self.candidates]).astype(np.float64)
        spreads = options[: len(references)].std(axis=0)
        options = (options - options.mean(axis=0))[:, spreads > 0] / spreads[spreads > 0]
        options *= OPTION_ERROR / np.sqrt(max(1, options.shape[1]))
        octaves = np.log2(
            np.concatenate([self._references.layer_counts, self._candidates.layer_counts])
            @ [weight_bytes(one) for one in kernels]
        )
        factor = np.column_stack(
            [
                np.full(len(options), LEVEL_DEVIATION),
                SLOPE_DEVIATION * (octaves - octaves.mean()),
                options,
            ]
        )
        self._reference_factor = factor[: len(references)]
        self._candidate_factor = factor[len(references) :]

    def next_batch(
        self,
        latency_us: Mapping[Workload, float],
        measured: AbstractSet[Architecture],
        hopeless: AbstractSet[Workload] = frozenset(),
    ) -> Batch:
        """Return what to measure, given the measured kernels and the measured subnets.

        Subnets are planned when all their kernels are measured. latency_us: microseconds of each
        measured kernel; hopeless: kernels not to be tried, nor subnets that have them.
        """
        needs = self._uses(self._candidates, latency_us) > 0
        known = np.array([one in latency_us for one in self._kernels])
        lost = np.array([one in hopeless for one in self._kernels])
        missing = (needs & ~known).sum(axis=1)
        done = np.array([one in measured for one in self.candidates])
        open_kernels = np.flatnonzero(~known & ~lost)
        left = max(0, self._subnets - len(measured))
        open_subnets = np.flatnonzero(~done & ~(needs & lost & ~known).any(axis=1))
        if not left:
            open_subnets = open_subnets[:0]

        rows, targets = self._model(latency_us)
        count = len(self._kernels)
        before = np.concatenate([np.flatnonzero(known), count + np.flatnonzero(done)])
        free = np.concatenate([open_kernels, count + open_subnets])
        chosen = next_batch(
            np.concatenate([rows[before], rows[free]]),
            np.arange(len(before)),
            max(FIRST_BATCH, min(BATCH, len(before) // GROWTH)),
            np.random.default_rng(len(before)),
            KERNEL_NOISE**2,
            np.concatenate([np.ones(count), SUBNET_COST + missing])[[*before, *free]],
            targets,
        )
        places = free[chosen - len(before)]
        if len(places) and places[0] < count:
            return Batch(tuple(self._kernels[place] for place in places if place < count), ())
        numbers = (places[places >= count] - count)[: min(left, SUBNET_BATCH)]
        return self._batch_of(numbers.tolist(), needs & ~known)

    def first_batch(
        self,
        latency_us: Mapping[Workload, float],
        measured: AbstractSet[Architecture],
        count: int,
        hopeless: AbstractSet[Workload] = frozenset(),
    ) -> Batch:
        """Return what to measure for `count` subnets, those for which few kernels have to be tuned.

        Each is chosen with the kernels of those before it in mind. The rest is as in `next_batch`.
        """
        known = np.array([one in latency_us for one in self._kernels])
        lost = np.array([one in hopeless for one in self._kernels]) & ~known
        needs = self._uses(self._candidates, latency_us) > 0
        barred = (needs & lost).any(axis=1) | np.array([one in measured for one in self.candidates])
        lacking = needs & ~known
        chosen: list[int] = []
        for _ in range(min(count, int((~barred).sum()))):
            missing = (needs & ~known).sum(axis=1)
            best = int(np.argmin(np.where(barred, len(known) + 1, missing)))
            chosen.append(best)
            barred[best] = True
            known |= needs[best]
        return self._batch_of(chosen, lacking)

    def _batch_of(self, numbers: Sequence[int], lacking: Flags) -> Batch:
        """Return the kernels that these candidates lack, or else the candidates.

        lacking: [candidates, kernels].
        """
        kernels = [place for number in numbers for place in np.flatnonzero(lacking[number])]
        if kernels:
            places = list(dict.fromkeys(kernels))[:BATCH]
            return Batch(tuple(self._kernels[place] for place in places), ())
        return Batch((), tuple(self.candidates[number] for number in numbers))

    def estimated_shares(self, latency_us: Mapping[Workload, float]) -> Array:
        """Return the share of each random architecture's kernel sum that was not measured."""
        parts_us = self._uses(self._references, latency_us) * rough_latencies_us(
            latency_us, self._kernels
        )
        known = np.array([one in latency_us for one in self._kernels])
        return np.asarray(parts_us[:, ~known].sum(axis=1) / parts_us.sum(axis=1))

    def weights(self, latency_us: Mapping[Workload, float]) -> dict[Workload, float]:
        """Return the mean share of the kernel sum that each kernel has in random architectures."""
        parts_us = self._uses(self._references, latency_us) * rough_latencies_us(
            latency_us, self._kernels
        )
        shares = (parts_us / parts_us.sum(axis=1, keepdims=True)).mean(axis=0)
        return dict(zip(self._kernels, shares.tolist(), strict=True))

    def _model(self, latency_us: Mapping[Workload, float]) -> tuple[Array, Array]:
        """Return rows of all kernels and candidates, and those of the random architectures."""
        rough_us = rough_latencies_us(latency_us, self._kernels)
        uses = self._uses(self._references, latency_us)
        error_us = KERNEL_ERROR * np.sqrt(rough_us * np.median(rough_us))
        weights = uses * error_us / (uses @ rough_us)[:, None]
        count = len(self._kernels)
        # a measurement with other noise is one with this noise on another scale
        scale = KERNEL_NOISE / SUBNET_NOISE
        columns = count + self._candidate_factor.shape[1]
        rows = np.zeros((count + len(self.candidates), columns))
        rows[:count, :count] = self._similarity
        rows[count:, count:] = scale * self._candidate_factor
        return rows, np.column_stack([weights @ self._similarity, self._reference_factor])

    def _uses(self, networks: "_Networks", latency_us: Mapping[Workload, float]) -> Array:
        """Return how often each network has each kernel: [networks, kernels]."""
        counts = networks.layer_counts.copy()
        for row in networks.open_choices:
            counts[row] = self._count(choose_kernels(networks.layers[row], latency_us))
        return counts

    def _networks(self, architectures: Sequence[Architecture], space: SearchSpace) -> "_Networks":
        layers = [workloads(space, one) for one in architectures]
        return _Networks(
            layers=layers,
            layer_counts=np.array([self._count(each) for each in layers]),
            open_choices=[
                row for row, each in enumerate(layers) if set(kernel_options(each)) != set(each)
            ],
        )

    def _count(self, kernels: Sequence[Workload]) -> Array:
        numbers = [self._numbers[kernel] for kernel in kernels]
        return np.bincount(numbers, minlength=len(self._kernels)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class _Networks:
    """The layers of some networks, and which have alternatives: those use what the table says."""

    layers: Sequence[Sequence[Workload]]
    layer_counts: Array  # [networks, kernels], how often each network has each layer
    open_choices: Sequence[int]


def _similarity(kernels: Sequence[Workload]) -> Array:
    """Return the prior correlation of the kernels' relative errors."""
    features = kernel_features(kernels)
    spread = features.std(axis=0)
    features = features[:, spread > 0] / spread[spread > 0]
    lengths = (features**2).sum(axis=1)
    squares = np.maximum(lengths[:, None] + lengths - 2 * features @ features.T, 0)
    alike = np.exp(-squares / (2 * SIMILAR**2))
    return np.asarray((1 - OWN_SHARE) * alike + OWN_SHARE * np.eye(len(kernels)))
