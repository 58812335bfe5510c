"""Uniform random search: the baseline every strategy has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bignas.search.sampling import draw_fresh
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["RandomSearch", "RandomSearchConfig"]


@dataclass(frozen=True)
class RandomSearchConfig:
    """Random search has nothing to set."""


class RandomSearch:
    """Suggests architectures drawn uniformly, never one it was told about."""

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        config: RandomSearchConfig = RandomSearchConfig(),
    ) -> None:
        self.space = space
        self.seed = seed
        self.config = config
        self._told: list[Trial] = []

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn which architectures were looked at."""
        self._told.extend(trials)

    def suggest(self, count: int) -> list[Architecture]:
        """Up to `count` architectures it was not told about yet; fewer at the end of the space."""
        rng = np.random.default_rng([self.seed, len(self._told)])
        known = {trial.architecture for trial in self._told}
        return draw_fresh(lambda: self.space.sample(rng), self.space, count, known, rng)
