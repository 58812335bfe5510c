"""How trials compare, and what the front of a set of trials is."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bignas.search.pareto import hypervolume, pareto_front
from bignas.search.trial import Trial
from tests.search.synthetic import make_space

ARCHITECTURE = make_space().smallest()
objectives = st.lists(
    st.tuples(st.floats(0.1, 10), st.one_of(st.none(), st.floats(0, 1))), max_size=30
)


def trials_of(pairs: list[tuple[float, float | None]]) -> list[Trial]:
    return [Trial(ARCHITECTURE, latency, 0.5, accuracy) for latency, accuracy in pairs]


def dominates(first: Trial, second: Trial) -> bool:
    assert first.top1 is not None
    assert second.top1 is not None
    better = first.top1 > second.top1 or first.latency_ms < second.latency_ms
    return first.top1 >= second.top1 and first.latency_ms <= second.latency_ms and better


@pytest.mark.parametrize(("latency", "accuracy"), [(0.0, 0.5), (math.nan, 0.5), (1.0, 70.0)])
def test_impossible_trials_are_refused(latency: float, accuracy: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Trial(ARCHITECTURE, latency, 0.5, accuracy)


def test_feasible_beats_infeasible_and_fast_beats_slow_among_the_infeasible() -> None:
    ranked = [
        Trial(ARCHITECTURE, 1.0, 0.5, 0.9),
        Trial(ARCHITECTURE, 0.5, 0.5, 0.1),
        Trial(ARCHITECTURE, 0.5, 0.5, None),
        Trial(ARCHITECTURE, 2.0, 2.0, 0.99),
        Trial(ARCHITECTURE, 3.0, 3.0, None),
    ]
    scores = [trial.score for trial in ranked]
    assert all(better > worse for better, worse in itertools.pairwise(scores))


@given(objectives)
def test_the_front_holds_what_nothing_dominates_and_dominates_the_rest(
    pairs: list[tuple[float, float | None]],
) -> None:
    trials = trials_of(pairs)
    front = pareto_front(trials)
    evaluated = [trial for trial in trials if trial.top1 is not None]
    for member in front:
        assert not any(dominates(other, member) for other in evaluated)
    for trial in evaluated:
        assert any(dominates(member, trial) or member == trial for member in front)
    latencies = [member.latency_ms for member in front]
    assert latencies == sorted(set(latencies))


@given(objectives, st.floats(0.1, 10), st.floats(0, 1))
def test_the_hypervolume_never_shrinks_and_stays_in_the_box(
    pairs: list[tuple[float, float | None]], latency: float, accuracy: float
) -> None:
    before = hypervolume(trials_of(pairs), 5.0)
    after = hypervolume(trials_of([*pairs, (latency, accuracy)]), 5.0)
    assert 0 <= before <= after + 1e-12
    assert after <= 5.0


def test_the_hypervolume_of_steps_is_the_area_below_them() -> None:
    steps = trials_of([(1.0, 0.5), (2.0, 0.8), (3.0, 0.7), (9.0, 1.0), (1.5, None)])
    assert hypervolume(steps, 4.0) == pytest.approx(0.5 * 1 + 0.8 * 2)
    assert hypervolume([], 4.0) == 0
