"""Exploring: a strategy suggests, the predictor rejects what breaks a limit, the rest is evaluated.

With an accuracy predictor the strategy is told predictions, and only what looks best is evaluated.
"""

import time
from collections.abc import Sequence
from typing import Any

from bignas.search.context import SearchContext, SearchProgress
from bignas.search.preselect import preselect
from bignas.search.requirements import Requirements
from bignas.search.result import Objective
from bignas.search.strategy import create_strategy
from bignas.search.trial import Trial
from bignas.search.trial_log import TrialLog
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.children import ChildEvaluator

__all__ = ["Explorer", "evaluated"]

BATCH = 16
PRESELECTED_BATCH = 8  # evaluated before they are logged, where predictions chose them
SUGGESTIONS_PER_EVALUATION = 60  # bound on how long a strategy may look for feasible architectures


class Explorer:
    """Looks around in the space of one search; `predicted` counts the predicted accuracies."""

    def __init__(
        self, context: SearchContext, requirements: Requirements, evaluator: ChildEvaluator
    ) -> None:
        self._context = context
        self._requirements = requirements
        self._evaluator = evaluator
        self.predicted = 0

    def explore(self, question: dict[str, Any]) -> list[Trial]:
        """Let the strategy look around; return all trials."""
        context, config = self._context, self._context.config
        log = TrialLog(context.out, question)
        if context.accuracy is not None:
            return self._explore_preselected(log, context.accuracy)
        strategy = create_strategy(config.strategy, context.space, config.seed)
        trials: list[Trial] = []
        for batch in log.read():
            strategy.tell(batch)
            trials += batch
        limit = config.evaluations * SUGGESTIONS_PER_EVALUATION
        start, before = time.monotonic(), evaluated(trials)
        while evaluated(trials) < config.evaluations and len(trials) < limit:
            suggestions = strategy.suggest(BATCH)
            if not suggestions:
                break
            batch = self._evaluate_batch(suggestions, evaluated(trials))
            log.append(batch)
            strategy.tell(batch)
            trials += batch
            self._report_exploring(trials, start, before)
        return trials

    def _explore_preselected(self, log: TrialLog, accuracy: AccuracyPredictor) -> list[Trial]:
        """Let the strategy look around by prediction; evaluate what it finds best."""

        def judge(suggestions: Sequence[Architecture]) -> list[Trial]:
            tops = accuracy.predict(suggestions).tolist()
            return [
                Trial(architecture, latency_ms, load, top1 if load <= 1 else None)
                for (architecture, latency_ms, load), top1 in zip(
                    self._priced(suggestions), tops, strict=True
                )
            ]

        config = self._context.config
        self._context.report(SearchProgress("predict", 0, 1, 0.0, ""))
        strategy = create_strategy(config.strategy, self._context.space, config.seed)
        front = config.objective is Objective.ACCURACY_AND_LATENCY
        found = preselect(strategy, judge, config.evaluations, front=front)
        self._context.report(SearchProgress("predict", 1, 1, 0.0, ""))
        self.predicted = found.predicted
        trials = [one for batch in log.read() for one in batch]
        start, before = time.monotonic(), evaluated(trials)
        known = {one.architecture for one in trials}
        waiting = [one for one in found.chosen if one not in known]
        waiting = waiting[: config.evaluations - before]
        for first in range(0, len(waiting), PRESELECTED_BATCH):
            chosen = waiting[first : first + PRESELECTED_BATCH]
            batch = self._evaluate_batch(chosen, evaluated(trials))
            log.append(batch)
            trials += batch
            self._report_exploring(trials, start, before)
        return trials

    def _evaluate_batch(self, suggestions: Sequence[Architecture], done: int) -> list[Trial]:
        priced = self._priced(suggestions)
        keeping = [architecture for architecture, _, load in priced if load <= 1]
        chosen = keeping[: max(0, self._context.config.evaluations - done)]
        tops = self._evaluator.evaluate(chosen, self._context.processes)
        top1 = dict(zip(chosen, tops, strict=True))
        return [
            Trial(architecture, latency_ms, load, top1.get(architecture))
            for architecture, latency_ms, load in priced
        ]

    def _priced(
        self, architectures: Sequence[Architecture]
    ) -> list[tuple[Architecture, float, float]]:
        """Architectures with their predicted latency in ms and their load."""
        latencies_ms = self._context.sites[0].predictor.predict(architectures).latency_ms
        loads = self._requirements.loads(architectures)
        return list(zip(architectures, latencies_ms.tolist(), loads.tolist(), strict=True))

    def _report_exploring(self, trials: Sequence[Trial], start: float, before: int) -> None:
        done, total = evaluated(trials), self._context.config.evaluations
        pace = (time.monotonic() - start) / max(1, done - before)
        best = max((one.top1 or 0.0 for one in trials if one.feasible), default=0.0)
        note = f"best {best:.2%}" if best else "nothing feasible yet"
        self._context.report(SearchProgress("explore", done, total, pace * (total - done), note))


def evaluated(trials: Sequence[Trial]) -> int:
    """How many of the trials were evaluated."""
    return sum(1 for one in trials if one.top1 is not None)
