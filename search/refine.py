"""What a search has left of its limits at the end, spent where a model says that it helps.

A strategy stops where its evaluations end. With a few dozen noisy ones the most accurate child
often uses no more than 90% of a budget, although a child that takes more time is nearly always as
good. So around the most accurate children, further ones are proposed: those that use at least half
of what the most accurate one leaves, and of these the ones that a model of accuracy finds best:
the accuracy predictor, or a quadratic model of what was evaluated. Proposals are evaluated like any
other child, and accuracy alone decides: nothing is delivered because it fills the budget.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bignas.search.neighbours import double_changes, row_codes, single_changes
from bignas.search.quadratic import Quadratic
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["LEAST_LEFT", "quadratic_model", "refinements"]

LEAST_LEFT = 0.01  # of the limits: less than that is not worth a proposal
LEADERS = 3  # architectures that are changed, in one or two dimensions
MOST_ROWS = 1500  # that the model is fitted to: the most accurate ones

Figures = Callable[[Sequence[Architecture]], NDArray[np.float64]]  # one for each architecture


def refinements(
    space: SearchSpace, top1: Figures, evaluated: Sequence[Trial], loads: Figures, count: int
) -> list[Architecture]:
    """Up to `count` architectures that use more of the limits than the best one does, best first.

    `top1` models accuracies [n], `loads` gives the loads [n] of architectures. `evaluated` are
    trials with accuracies, at least one: the best of them are changed, and none is proposed again.
    None come back when hardly anything is left of the limits, or nothing fits into what is left.
    """
    leaders = sorted(evaluated, key=lambda trial: -trial.score)[:LEADERS]
    least = (1 + leaders[0].load) / 2
    sizes = tuple(len(options) for _, options in space.dimensions())
    if not sizes or 1 - leaders[0].load <= LEAST_LEFT:
        return []
    rows = np.array([space.positions(trial.architecture) for trial in leaders], dtype=np.int64)
    changed = np.concatenate([single_changes(rows, sizes), double_changes(rows, sizes)])
    _, first = np.unique(row_codes(changed, sizes), return_index=True)
    known = {trial.architecture for trial in evaluated}
    fresh = [row for row in changed[np.sort(first)] if space.at(row.tolist()) not in known]
    if not fresh:
        return []
    candidates = np.array(fresh)
    used = loads([space.at(row) for row in candidates.tolist()])
    fitting = [space.at(row) for row in candidates[(used <= 1) & (used >= least)].tolist()]
    if not fitting:
        return []
    order = np.argsort(-top1(fitting), kind="stable")
    return [fitting[place] for place in order[:count].tolist()]


def quadratic_model(space: SearchSpace, told: Sequence[Trial]) -> Figures:
    """A model of accuracy, fitted to trials of which at least one has an accuracy."""
    sizes = tuple(len(options) for _, options in space.dimensions())
    ranked = sorted((-one.top1, number) for number, one in enumerate(told) if one.top1 is not None)
    best = [told[number] for _, number in ranked[:MOST_ROWS]]
    rows = np.array([space.positions(one.architecture) for one in best], dtype=np.int64)
    top1 = np.array([one.top1 for one in best], dtype=np.float64)
    model = Quadratic.fit(rows, top1, sizes)
    return lambda architectures: model.predict(
        np.array([space.positions(one) for one in architectures], dtype=np.int64)
    )
