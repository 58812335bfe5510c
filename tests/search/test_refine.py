"""Proposals for what a search has left: within limits, using the room, new; none without room."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from bignas.search.constraint import LatencyBudget
from bignas.search.refine import quadratic_model, refinements
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from tests.search.synthetic import evaluate, latency_ms, make_space

SPACE = make_space(stages=2)
MIDDLE_MS = (latency_ms(SPACE, SPACE.smallest()) + latency_ms(SPACE, SPACE.biggest())) / 2
BUDGET = LatencyBudget(MIDDLE_MS)


def loads(architectures: Sequence[Architecture]) -> NDArray[np.float64]:
    return np.array([latency_ms(SPACE, one) / BUDGET.budget_ms for one in architectures])


def told(count: int, most_load: float, seed: int = 0) -> list[Trial]:
    """Random feasible trials that leave room."""
    rng = np.random.default_rng(seed)
    trials: list[Trial] = []
    while len(trials) < count:
        trial = evaluate(SPACE, SPACE.sample(rng), BUDGET)
        if trial.load <= most_load:
            trials.append(trial)
    return trials


@pytest.mark.parametrize("seed", range(5))
def test_they_use_the_room_within_the_limits(seed: int) -> None:
    trials = told(30, 0.8, seed)
    best = max(trials, key=lambda one: one.score)
    proposed = refinements(SPACE, quadratic_model(SPACE, trials), trials, loads, 8)
    assert proposed
    assert len(set(proposed)) == len(proposed) <= 8
    assert not set(proposed) & {one.architecture for one in trials}
    used = loads(proposed)
    assert (used <= 1).all()
    assert (used >= (1 + best.load) / 2).all()


def test_the_model_chooses() -> None:
    trials = told(30, 0.8)

    def smallness(architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return -loads(architectures)

    slowest, fastest = (
        refinements(SPACE, model, trials, loads, 1)[0] for model in (loads, smallness)
    )
    assert loads([fastest])[0] < loads([slowest])[0]


def test_no_room_no_proposals() -> None:
    trials = told(30, 1.0)
    full = [Trial(one.architecture, one.latency_ms, 0.995, one.top1) for one in trials]
    assert refinements(SPACE, quadratic_model(SPACE, full), full, loads, 8) == []


def test_the_same_trials_give_the_same_proposals() -> None:
    trials = told(30, 0.8)
    first = refinements(SPACE, quadratic_model(SPACE, trials), trials, loads, 8)
    assert refinements(SPACE, quadratic_model(SPACE, trials), trials, loads, 8) == first
    assert refinements(SPACE, quadratic_model(SPACE, trials), trials, loads, 3) == first[:3]
