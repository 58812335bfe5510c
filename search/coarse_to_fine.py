"""Coarse-to-fine selection: Yu et al., "BigNAS", ECCV 2020 (arXiv 2003.11142), section 3.4.

Coarse: a grid of network-wide settings (resolution, depth, width, kernel sizes, expand ratios: the
same level in all stages) finds the skeletons of good networks. Fine: stage-wise variations of the
best skeletons that keep the limits. Here the best of all that is known are varied, so that a good
variation becomes a skeleton itself, and the grid has an axis for expand ratios, which the paper's
space does not vary.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bignas.search.sampling import draw_fresh
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["CoarseToFine", "CoarseToFineConfig"]


@dataclass(frozen=True)
class CoarseToFineConfig:
    """Settings of coarse-to-fine selection. Raises ValueError when they make no sense."""

    resolutions: int = 5  # levels of the grid, as in the paper where it names them
    depths: int = 4
    widths: int = 2
    kernels: int = 2
    expands: int = 2
    skeletons: int = 8  # best ones that are varied
    mutation_probability: float = 0.1  # of each dimension in a variation

    def __post_init__(self) -> None:
        levels = (self.resolutions, self.depths, self.widths, self.kernels, self.expands)
        if min(*levels, self.skeletons) < 1 or not 0 < self.mutation_probability <= 1:
            raise ValueError("levels and skeletons must be positive, the probability in 0..1")


class CoarseToFine:
    """The grid first, then variations; a function of the seed and the told trials alone."""

    def __init__(
        self, space: SearchSpace, seed: int, config: CoarseToFineConfig = CoarseToFineConfig()
    ) -> None:
        self.space = space
        self.seed = seed
        self.config = config
        self.grid = _ordered(list(dict.fromkeys(_grid(space, config))), seed)
        self._told: dict[Architecture, Trial] = {}

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn how architectures did; a later trial of one replaces an earlier one."""
        self._told.update((trial.architecture, trial) for trial in trials)

    def suggest(self, count: int) -> list[Architecture]:
        """Up to `count` architectures it was not told about yet; fewer at the end of the space."""
        rng = np.random.default_rng([self.seed, len(self._told)])
        suggestions = [one for one in self.grid if one not in self._told][:count]
        best = sorted(self._told.values(), key=lambda trial: -trial.score)
        skeletons = best[: self.config.skeletons]

        def vary() -> Architecture:
            if not skeletons:
                return self.space.sample(rng)
            skeleton = skeletons[int(rng.integers(len(skeletons)))].architecture
            return self.space.mutate(skeleton, rng, self.config.mutation_probability)

        missing, known = count - len(suggestions), [*self._told, *suggestions]
        return suggestions + draw_fresh(vary, self.space, missing, known, rng)


def _grid(space: SearchSpace, config: CoarseToFineConfig) -> Iterator[Architecture]:
    """Every combination of the levels; `resolution` has its own, as there is one for all stages."""
    level_counts = (
        min(config.resolutions, len(space.resolutions)),
        config.depths,
        config.widths,
        config.kernels,
        config.expands,
    )
    axes = [np.linspace(0, 1, count) if count > 1 else np.array([0.0]) for count in level_counts]
    dimensions = space.dimensions()
    for resolution, depth, width, kernel, expand in itertools.product(*axes):
        levels = {
            "resolution": resolution, "depth": depth, "channels": width, "stem_channels": width,
            "head_channels": width, "kernel": kernel, "expand": expand,
        }  # fmt: skip
        yield space.at(
            [
                round(levels[name.rpartition(".")[2]] * (len(options) - 1))
                for name, options in dimensions
            ]
        )


def _ordered(grid: list[Architecture], seed: int) -> list[Architecture]:
    """The smallest first: it shows whether a limit is hopeless; the others in a random order."""
    order = 1 + np.random.default_rng(seed).permutation(len(grid) - 1)
    return [grid[0], *(grid[index] for index in order)]
