"""Which architectures deserve a real evaluation, when their accuracy can be predicted for nothing.

The strategy looks around as in any search, but is told predicted accuracies, so it may look at
thousands. What it finds best is handed back to be evaluated; predictions decide nothing else.
(As in White et al., "How Powerful are Performance Predictors in Neural Architecture Search?",
NeurIPS 2021, section 5: predictor-guided search.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bignas.search.pareto import pareto_front
from bignas.search.strategy import Strategy
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture

__all__ = ["Preselection", "preselect"]

MOST_PREDICTED = 2000  # architectures within the limits
MOST_SUGGESTED = 6000  # with those that break them
BATCH = 32
FRONT_SHARE = 0.25  # of the chosen ones that lie on the front below the limits


@dataclass(frozen=True, slots=True)
class Preselection:
    """The chosen architectures, best first, and how many accuracies were predicted for them."""

    chosen: tuple[Architecture, ...]
    predicted: int


def preselect(
    strategy: Strategy,
    judge: Callable[[Sequence[Architecture]], list[Trial]],
    count: int,
    *,
    front: bool,
) -> Preselection:
    """Let a strategy look around, and choose up to `count` architectures that keep all limits.

    `judge` returns trials with predicted accuracies, None for what breaks a limit. With `front`
    some of the chosen lie spread over the front of accuracy and latency. A function of its
    arguments: an interrupted search finds the same again.
    """
    trials: list[Trial] = []
    kept: list[Trial] = []
    while len(kept) < MOST_PREDICTED and len(trials) < MOST_SUGGESTED:
        suggestions = strategy.suggest(BATCH)
        if not suggestions:
            break
        batch = judge(suggestions)
        strategy.tell(batch)
        trials += batch
        kept += [one for one in batch if one.feasible and one.top1 is not None]
    ranked = sorted(kept, key=lambda one: (-one.score, one.latency_ms))
    share = round(count * FRONT_SHARE) if front else 0
    best = ranked[: count - share]
    chosen = dict.fromkeys(one.architecture for one in [*best, *_spread(kept, share), *ranked])
    return Preselection(tuple(chosen)[:count], len(kept))


def _spread(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Up to `count` members of the front, evenly spread over it."""
    members = sorted(pareto_front(trials), key=lambda one: one.latency_ms)
    places = np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)
    return [members[place] for place in places.tolist()]
