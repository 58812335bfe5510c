"""Local search: White, Nolen, Savani, "Exploring the Loss Landscape in Neural Architecture Search".

UAI 2021 (arXiv 2005.02960): evaluate the neighbours of the present architecture, those that differ
in one dimension, go to a better one, and so on until none is better. Of the paper's variants these:
the search leaves for a better neighbour once it is told of it, before all are known; and at a
minimum it goes on with the best architecture whose neighbours are not all known. It starts from the
best of a few random architectures and the smallest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bignas.search.neighbours import single_changes
from bignas.search.sampling import draw_fresh
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["LocalSearch", "LocalSearchConfig"]


@dataclass(frozen=True)
class LocalSearchConfig:
    """Settings of local search. Raises ValueError when they make no sense."""

    starts: int = 10  # random architectures of which the best is the first to be left

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise ValueError("starts must be at least 1")


class LocalSearch:
    """Best-first local search; a function of the seed and the told trials alone."""

    def __init__(
        self, space: SearchSpace, seed: int, config: LocalSearchConfig = LocalSearchConfig()
    ) -> None:
        self.space = space
        self.seed = seed
        self.config = config
        self._told: dict[Architecture, Trial] = {}
        self._finished: set[Architecture] = set()  # all neighbours are known

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn how architectures did; a later trial of one replaces an earlier one."""
        self._told.update((trial.architecture, trial) for trial in trials)

    def suggest(self, count: int) -> list[Architecture]:
        """Up to `count` architectures it was not told about yet; fewer at the end of the space."""
        rng = np.random.default_rng([self.seed, len(self._told)])
        smallest = self.space.smallest()
        suggestions = [smallest] if count and smallest not in self._told else []
        missing = min(count, self.config.starts - len(self._told)) - len(suggestions)
        if missing > 0:
            suggestions += self._random(missing, suggestions, rng)
        taken = set(suggestions)
        for trial in self._best_first():
            if len(suggestions) >= count:
                break
            unknown = [one for one in self._neighbours(trial) if one not in self._told]
            if not unknown:
                self._finished.add(trial.architecture)
            order = rng.permutation(len(unknown))
            fresh = [unknown[index] for index in order if unknown[index] not in taken]
            suggestions += fresh[: count - len(suggestions)]
            taken.update(suggestions)
        return suggestions + self._random(count - len(suggestions), suggestions, rng)

    def _random(
        self, count: int, taken: Sequence[Architecture], rng: np.random.Generator
    ) -> list[Architecture]:
        known = [*self._told, *taken]
        return draw_fresh(lambda: self.space.sample(rng), self.space, count, known, rng)

    def _best_first(self) -> list[Trial]:
        open_trials = [trial for one, trial in self._told.items() if one not in self._finished]
        return sorted(open_trials, key=lambda trial: -trial.score)

    def _neighbours(self, trial: Trial) -> list[Architecture]:
        sizes = tuple(len(options) for _, options in self.space.dimensions())
        row = np.array([self.space.positions(trial.architecture)], dtype=np.int64)
        return [self.space.at(one) for one in single_changes(row, sizes).tolist()]
