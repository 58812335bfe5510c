"""Model-guided search, the default: fit a model to what is known, evaluate what it finds best.

After Hutter, Hoos, Leyton-Brown, "Sequential Model-Based Optimization for General Algorithm
Configuration", LION 2011 (local search on a model, interleaved with random suggestions), and White,
Neiswanger, Savani, "BANANAS", AAAI 2021 (a predictor over changes of the best architectures).

1. Start: the smallest architecture, then random ones mixed with it, so that tight limits are met.
2. Models: three quadratic functions of the options, of accuracy, of log latency and of log load.
   What makes an architecture slow is nearly additive, so a few hundred rejected suggestions, which
   cost nothing, show where the limits run.
3. Candidates: the best known architectures and members of the front, changed in up to two
   dimensions at once (under a limit, one has to give what another takes), ranked by the models, and
   the best of these changed again.
4. Suggestions: most by predicted accuracy within the limits; some the most accurate below random
   latencies, for the front; some random changes, in case the models are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.search.neighbours import Rows, double_changes, row_codes, single_changes
from bignas.search.pareto import pareto_front
from bignas.search.quadratic import Quadratic
from bignas.search.sampling import draw_fresh
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["GuidedConfig", "GuidedSearch"]

Array = NDArray[np.float64]

_MOST_ROWS = 1500  # that a model is fitted to: the best, and those nearest to the limits
_PATIENCE = 10  # suggestions for each architecture that is wanted to start with
_FEWEST = 3  # evaluated architectures that the models can be fitted to
_ROUNDS = 2  # of changing the best candidates again


@dataclass(frozen=True)
class GuidedConfig:
    """Settings of model-guided search. Raises ValueError when they make no sense."""

    start: int = 24  # evaluated architectures before the models are asked
    leaders: int = 8  # architectures that are changed to find candidates
    front_share: float = 0.25  # of suggestions that look for the front below the limits
    random_share: float = 0.125  # of suggestions that are random changes
    mutation_probability: float = 0.15  # of each dimension in a random change
    slack: float = 1.0  # spreads of the load model by which it may be wrong about the limits

    def __post_init__(self) -> None:
        if self.start < 2 or self.leaders < 1 or not 0 < self.mutation_probability <= 1:
            raise ValueError("start must be at least 2, leaders positive, the probability in 0..1")
        if min(self.front_share, self.random_share) < 0 or self.front_share + self.random_share > 1:
            raise ValueError("front_share and random_share must lie between 0 and 1, as their sum")


@dataclass(frozen=True, eq=False)
class _Models:
    """What is believed about rows of option numbers."""

    top1: Quadratic
    log_latency: Quadratic
    log_load: Quadratic
    slack: float

    def keeps(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether rows are believed to keep all limits, or nearly."""
        return self.log_load.predict(rows) <= self.slack * self.log_load.spread


class GuidedSearch:
    """Searches where models of the told trials point; a function of the seed and those trials."""

    def __init__(
        self, space: SearchSpace, seed: int, config: GuidedConfig = GuidedConfig()
    ) -> None:
        self.space = space
        self.seed = seed
        self.config = config
        self._sizes = tuple(len(options) for _, options in space.dimensions())
        self._told: dict[Architecture, Trial] = {}
        self._rows: list[tuple[int, ...]] = []  # of the trials in `_told`, in their order
        self._tell_count = 0

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn how architectures did; a later trial of one replaces an earlier one."""
        for trial in trials:
            if trial.architecture not in self._told:
                self._rows.append(self.space.positions(trial.architecture))
            self._told[trial.architecture] = trial
            self._tell_count += 1

    def suggest(self, count: int) -> list[Architecture]:
        """Up to `count` architectures it was not told about yet; fewer at the end of the space."""
        rng = np.random.default_rng([self.seed, self._tell_count])
        trials = list(self._told.values())
        evaluated = [index for index, trial in enumerate(trials) if trial.top1 is not None]
        few = len(evaluated) < self.config.start
        if few and len(trials) >= _PATIENCE * self.config.start:
            few = len(evaluated) < _FEWEST  # limits that hardly anything keeps
        if few or not self._sizes:
            return self._start(count, rng)
        rows = np.array(self._rows, dtype=np.int64)
        models = self._fit(trials, rows, evaluated)
        candidates = self._candidates(models, trials, rows, rng)
        random = round(count * self.config.random_share)
        chosen = self._choose(models, candidates, trials, count - random, rng)
        suggestions = [self.space.at(row) for row in candidates[chosen].tolist()]
        return suggestions + self._changes(count - len(suggestions), suggestions, rng)

    def _start(self, count: int, rng: np.random.Generator) -> list[Architecture]:
        smallest = self.space.smallest()
        suggestions = [smallest] if count and smallest not in self._told else []
        mixed = True

        def propose() -> Architecture:
            nonlocal mixed
            mixed = not mixed
            sample = self.space.sample(rng)
            return self.space.cross(sample, smallest, rng) if mixed else sample

        known = [*self._told, *suggestions]
        missing = count - len(suggestions)
        return suggestions + draw_fresh(propose, self.space, missing, known, rng)

    def _fit(self, trials: Sequence[Trial], rows: Rows, evaluated: Sequence[int]) -> _Models:
        best = sorted(evaluated, key=lambda index: -trials[index].score)[:_MOST_ROWS]
        log_load = np.log([trial.load for trial in trials])
        near = np.argsort(np.abs(log_load), kind="stable")[:_MOST_ROWS]
        log_latency = np.log([trial.latency_ms for trial in trials])
        top1 = np.array([trials[index].top1 for index in best], dtype=np.float64)
        return _Models(
            top1=Quadratic.fit(rows[best], top1, self._sizes),
            log_latency=Quadratic.fit(rows[near], log_latency[near], self._sizes),
            log_load=Quadratic.fit(rows[near], log_load[near], self._sizes),
            slack=self.config.slack,
        )

    def _candidates(
        self, models: _Models, trials: Sequence[Trial], rows: Rows, rng: np.random.Generator
    ) -> Rows:
        """Rows not told yet, around the best ones known and the best ones found on the way."""
        count = self.config.leaders
        scores = np.array([trial.score for trial in trials])
        index_of = {trial.architecture: index for index, trial in enumerate(trials)}
        front = [index_of[one.architecture] for one in pareto_front(trials) if one.feasible]
        members = rng.permutation(front)[:count]
        leaders = rows[np.concatenate([np.argsort(-scores, kind="stable")[:count], members])]
        told = row_codes(rows, self._sizes)
        found = rows[:0]
        for _ in range(_ROUNDS):
            changed = [double_changes(leaders, self._sizes), single_changes(leaders, self._sizes)]
            found = self._distinct(np.concatenate([found, *changed]), told)
            keeping = found[models.keeps(found)]
            leaders = keeping[np.argsort(-models.top1.predict(keeping), kind="stable")[:count]]
        return found

    def _distinct(self, rows: Rows, told: NDArray[np.uint64]) -> Rows:
        codes, first = np.unique(row_codes(rows, self._sizes), return_index=True)
        return rows[np.sort(first[~np.isin(codes, told)])]

    def _choose(
        self,
        models: _Models,
        candidates: Rows,
        trials: Sequence[Trial],
        count: int,
        rng: np.random.Generator,
    ) -> list[int]:
        """Numbers of the candidates to suggest, at most `count`."""
        keeping = np.flatnonzero(models.keeps(candidates))
        top1 = models.top1.predict(candidates[keeping])
        order = keeping[np.argsort(-top1, kind="stable")]
        log_latency = models.log_latency.predict(candidates[order])
        known = np.log([trial.latency_ms for trial in trials if trial.feasible])
        ceilings = rng.uniform(known.min(), known.max(), round(count * self.config.front_share))
        chosen: dict[int, None] = {}
        for ceiling in ceilings:
            below = order[log_latency <= ceiling]
            fresh = next((int(one) for one in below if int(one) not in chosen), None)
            if fresh is not None:
                chosen[fresh] = None
        for index in order.tolist():
            if len(chosen) >= count:
                break
            chosen[index] = None
        return list(chosen)

    def _changes(
        self, count: int, taken: Sequence[Architecture], rng: np.random.Generator
    ) -> list[Architecture]:
        ranked = sorted(self._told.values(), key=lambda trial: -trial.score)
        leaders = ranked[: self.config.leaders]

        def propose() -> Architecture:
            leader = leaders[int(rng.integers(len(leaders)))].architecture
            return self.space.mutate(leader, rng, self.config.mutation_probability)

        return draw_fresh(propose, self.space, count, [*self._told, *taken], rng)
