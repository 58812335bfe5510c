"""NSGA-II: Deb, Pratap, Agarwal, Meyarivan, IEEE Transactions on Evolutionary Computation 6, 2002.

"A fast and elitist multiobjective genetic algorithm: NSGA-II": parents are chosen by the rank of
their front and by crowding distance; here by pymoo's ask and tell, with its integer operators, and
with the feasibility rules of Deb (2000) for the limits. Accuracy and latency are the objectives.

pymoo keeps its state in objects. To be a function of what it was told, as every strategy, a new
algorithm is told the best of the trials each time, and asked for their children: NSGA-II is
elitist, so the population after telling all at once is that of telling them in generations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from bignas.search.sampling import draw_fresh
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["NSGA2Config", "NSGA2Search"]


@dataclass(frozen=True)
class NSGA2Config:
    """Settings of NSGA-II. Raises ValueError when they make no sense."""

    population: int = 64  # members kept; as many random architectures start the search
    crossover_probability: float = 0.9
    crossover_eta: float = 3.0  # large: children close to their parents
    mutation_eta: float = 3.0

    def __post_init__(self) -> None:
        if self.population < 2 or not 0 <= self.crossover_probability <= 1:
            raise ValueError("population must be at least 2, crossover_probability lie in 0..1")


class NSGA2Search:
    """NSGA-II on option numbers; a function of the seed and the told trials alone."""

    def __init__(self, space: SearchSpace, seed: int, config: NSGA2Config = NSGA2Config()) -> None:
        self.space = space
        self.seed = seed
        self.config = config
        self._told: dict[Architecture, Trial] = {}
        self._tell_count = 0

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn how architectures did; a later trial of one replaces an earlier one."""
        for trial in trials:
            self._told[trial.architecture] = trial
            self._tell_count += 1

    def suggest(self, count: int) -> list[Architecture]:
        """Up to `count` architectures it was not told about yet; fewer at the end of the space."""
        rng = np.random.default_rng([self.seed, self._tell_count])
        suggestions: list[Architecture] = []
        if count and not self._told:
            suggestions.append(self.space.smallest())
        starting = len(self._told) + len(suggestions) < self.config.population
        if count and not starting and self.space.dimensions():
            children = dict.fromkeys(self._children(count, rng))
            suggestions += [one for one in children if one not in self._told][:count]
        known = [*self._told, *suggestions]
        missing = count - len(suggestions)
        return suggestions + draw_fresh(
            lambda: self.space.sample(rng), self.space, missing, known, rng
        )

    def _children(self, count: int, rng: np.random.Generator) -> list[Architecture]:
        trials = list(self._told.values())
        positions = np.array([self.space.positions(one.architecture) for one in trials])
        parents = Population.new(
            X=positions.astype(float),
            F=np.array([[-(one.top1 or 0.0), one.latency_ms] for one in trials]),
            G=np.array([[max(0.0, one.load - 1)] for one in trials]),
        )
        parents.apply(lambda one: one.evaluated.update(("F", "G")))
        sizes = np.array([len(options) for _, options in self.space.dimensions()])
        problem = Problem(
            n_var=len(sizes), n_obj=2, n_ieq_constr=1, xl=np.zeros(len(sizes)), xu=sizes - 1.0
        )
        size, rounding = self.config.population, RoundingRepair()
        algorithm = NSGA2(
            pop_size=size,
            n_offsprings=count,
            sampling=RankAndCrowding().do(problem, parents, n_survive=size, random_state=rng),
            crossover=SBX(
                prob=self.config.crossover_probability,
                eta=self.config.crossover_eta,
                vtype=float,
                repair=rounding,
            ),
            mutation=PM(eta=self.config.mutation_eta, vtype=float, repair=rounding),
            eliminate_duplicates=True,
            evaluator=Evaluator(skip_already_evaluated=True),
        )
        algorithm.setup(problem, termination=NoTermination(), seed=int(rng.integers(2**31)))
        algorithm.tell(infills=algorithm.ask())
        children = algorithm.ask()
        if children is None:
            return []
        rows = np.rint(children.get("X")).astype(int)
        return [self.space.at(row) for row in rows.tolist()]
