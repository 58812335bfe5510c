"""Regularised (ageing) evolution: Real et al., AAAI 2019.

"Regularized Evolution for Image Classifier Architecture Search" (arXiv 1802.01548): keep a
population, draw a tournament sample from it, let the best of the sample have a child, and let the
oldest member die. Here, for a search under limits:

- only feasible trials live in the population, and age in it; as long as there are too few of them
  it is filled up with the infeasible ones nearest to the limits; trials compare by `Trial.score`
  (feasibility rules of Deb, 2000), so that the search finds its way to a tight limit;
- a child is a mutation, or a mutated cross of two tournament winners;
- the smallest architecture of the space is suggested first: it shows whether limits are hopeless.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bignas.search.sampling import draw_fresh
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["EvolutionConfig", "RegularizedEvolution"]


@dataclass(frozen=True)
class EvolutionConfig:
    """Settings of regularised evolution. Raises ValueError when they make no sense."""

    population: int = 64  # members kept; as many random architectures start the search
    tournament: int = 12  # members that compete to become a parent
    mutation_probability: float = 0.1  # of each elastic dimension of a child
    cross_probability: float = 0.4  # of a child having two parents

    def __post_init__(self) -> None:
        if not 1 <= self.tournament <= self.population:
            raise ValueError("tournament must lie between 1 and population")
        if not 0 < self.mutation_probability <= 1 or not 0 <= self.cross_probability <= 1:
            raise ValueError("probabilities must lie between 0 and 1")


class RegularizedEvolution:
    """Ageing evolution under a constraint; a function of the seed and the told trials alone."""

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        config: EvolutionConfig = EvolutionConfig(),
    ) -> None:
        self.space = space
        self.seed = seed
        self.config = config
        self._told: dict[Architecture, Trial] = {}  # oldest first; a later trial replaces
        self._tell_count = 0

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn how architectures did; a later trial of one replaces an earlier one."""
        for trial in trials:
            self._told.pop(trial.architecture, None)
            self._told[trial.architecture] = trial
            self._tell_count += 1

    def suggest(self, count: int) -> list[Architecture]:
        """Up to `count` architectures it was not told about yet; fewer at the end of the space."""
        rng = np.random.default_rng([self.seed, self._tell_count])
        starting = len(self._told) < self.config.population
        suggestions: list[Architecture] = []
        smallest = self.space.smallest()
        if count > 0 and starting and smallest not in self._told:
            suggestions.append(smallest)
        if starting:
            known = [*self._told, *suggestions]
            missing = min(count, self.config.population - len(self._told)) - len(suggestions)
            suggestions += draw_fresh(
                lambda: self.space.sample(rng), self.space, missing, known, rng
            )
        members = self.population()
        known = [*self._told, *suggestions]
        suggestions += draw_fresh(
            lambda: self._child(members, rng), self.space, count - len(suggestions), known, rng
        )
        return suggestions

    def population(self) -> list[Trial]:
        """The living: the youngest feasible trials, filled up with the least infeasible ones."""
        feasible = [trial for trial in self._told.values() if trial.feasible]
        infeasible = [trial for trial in self._told.values() if not trial.feasible]
        size = self.config.population
        members = feasible[-size:]
        infeasible.sort(key=lambda trial: trial.load)
        return members + infeasible[: size - len(members)]

    def _child(self, members: Sequence[Trial], rng: np.random.Generator) -> Architecture:
        if not members:
            return self.space.sample(rng)
        child = self._parent(members, rng)
        if rng.random() < self.config.cross_probability:
            child = self.space.cross(child, self._parent(members, rng), rng)
        return self.space.mutate(child, rng, self.config.mutation_probability)

    def _parent(self, members: Sequence[Trial], rng: np.random.Generator) -> Architecture:
        chosen = rng.integers(len(members), size=self.config.tournament)
        competitors = [members[int(index)] for index in chosen]
        return max(competitors, key=lambda trial: trial.score).architecture
