"""Loads of several limits together, and the resources behind them."""

import dataclasses

import numpy as np
import pytest

from bignas.compile.child_graph import graph_with_random_weights
from bignas.compile.objects import ObjectCache
from bignas.compile.plan import make_plan
from bignas.compile.schedule import candidates
from bignas.device_db.errors import BudgetError, InfeasibleBudgetError, InputError
from bignas.device_db.probe import probe_local
from bignas.latency.evidence import evidence_hash
from bignas.latency.kernel_model import KernelTable
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import space_workloads
from bignas.search.constraint import Limits
from bignas.search.requirements import Requirements, Site
from bignas.search.resources import memory_bytes
from bignas.supernet.spaces import load_space
from tests.search.synthetic import make_space

SPACE = make_space(stages=2)
DEVICE = probe_local()


def site(name: str, budget_ms: float, macs_per_us: float = 1e5) -> Site:
    table = {work: 1.0 + work.macs / macs_per_us for work in space_workloads(SPACE)}
    predictor = LatencyPredictor.fit(SPACE, KernelTable(table, name, evidence_hash()), [])
    device = dataclasses.replace(DEVICE, name=name)
    return Site(device, ObjectCache(device.target), predictor, budget_ms)


def test_the_load_is_the_largest_share_of_any_limit() -> None:
    limits = Limits(macs=SPACE.macs(SPACE.biggest()), params=10**9)
    rng = np.random.default_rng(0)
    some = [SPACE.sample(rng) for _ in range(20)]
    both = Requirements(SPACE, (site("a", 0.1), site("b", 0.3, 2e4)), 0.95, limits)
    shares = both.shares(some)
    assert set(shares) == {"latency on a", "latency on b", "macs", "params"}
    assert np.array_equal(both.loads(some), np.max(list(shares.values()), axis=0))
    alone = Requirements(SPACE, (site("a", 0.1),), 0.95)
    assert (both.loads(some) >= alone.loads(some)).all()


def test_more_confidence_leaves_less_room() -> None:
    one = site("a", 0.1)
    loads = [
        Requirements(SPACE, (one,), confidence).loads([SPACE.biggest()])[0]
        for confidence in (0.05, 0.5, 0.9, 0.95, 0.999)
    ]
    assert loads == sorted(loads)
    assert loads[0] < loads[-1]
    latency_ms = one.predictor.predict([SPACE.biggest()]).latency_ms[0]
    assert loads[1] == pytest.approx(latency_ms / 0.1)


def test_a_load_of_one_is_kept_with_the_confidence_asked_for() -> None:
    for confidence in (0.6, 0.95, 0.99):
        bound_ms = float(site("a", 1.0).predictor.quantile_ms([SPACE.biggest()], confidence)[0])
        requirements = Requirements(SPACE, (site("a", bound_ms),), confidence)
        assert requirements.loads([SPACE.biggest()])[0] == pytest.approx(1)
        assert requirements.probabilities(SPACE.biggest())["a"] == pytest.approx(confidence)


def test_headroom_is_left_by_what_is_predicted_unless_nothing_keeps_it() -> None:
    rng = np.random.default_rng(0)
    some = [SPACE.sample(rng) for _ in range(20)]
    one = site("a", 0.1)
    latency_ms = one.predictor.predict(some).latency_ms
    plain = Requirements(SPACE, (one,), 0.5)
    loads = plain.leaving(0.2, 0).loads(some)
    assert loads == pytest.approx(latency_ms / 0.08)
    assert (
        Requirements(SPACE, (one,), 0.95).leaving(0.001, 0).loads(some) > plain.loads(some)
    ).all()
    smallest_ms = float(one.predictor.predict([SPACE.smallest()]).latency_ms[0])
    tight = Requirements(SPACE, (site("a", 1.1 * smallest_ms),), 0.5)
    assert tight.leaving(0.2, 0) is tight


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        Requirements(SPACE, (site("a", 1.0),), confidence)


def test_a_device_counts_once() -> None:
    with pytest.raises(BudgetError, match="twice"):
        Requirements(SPACE, (site("a", 1.0), site("a", 2.0)), 0.9)


def test_infeasible_limits_are_all_named() -> None:
    requirements = Requirements(SPACE, (site("a", 1e-6), site("b", 1e3)), 0.9, Limits(params=10))
    with pytest.raises(InfeasibleBudgetError) as caught:
        requirements.require_feasible(0)
    message = str(caught.value)
    assert SPACE.smallest().key in message
    assert "on a" in message
    assert "10 params" in message
    assert "on b" not in message


@pytest.mark.parametrize("name", ["digits", "cifar", "bignas"])
def test_memory_is_what_the_call_plan_needs_within_a_twentieth(name: str) -> None:
    space = load_space(name)
    for architecture in (space.smallest(), space.sample(np.random.default_rng(1))):
        graph = graph_with_random_weights(space, architecture)
        schedules = [candidates(one, DEVICE.target)[0] for one in graph.workloads]
        plan = make_plan(graph, schedules, DEVICE.target.vector_lanes)
        needed = len(plan.weights) + plan.workspace_bytes + plan.prepared_bytes
        assert memory_bytes(space, architecture) == pytest.approx(needed, rel=0.05)


def test_what_was_measured_moves_the_predictions() -> None:
    """All loads move towards the measurements, the more the more there are, never beyond."""
    rng = np.random.default_rng(0)
    some = [SPACE.sample(rng) for _ in range(8)]
    before = Requirements(SPACE, (site("a", 0.1),), 0.5)
    predicted = before.sites[0].predictor.predict(some).latency_ms
    assert before.conditioned([], []).loads(some) == pytest.approx(before.loads(some))
    moved = [
        before.conditioned(some[:count], [[1.1 * one] for one in predicted[:count]]).loads(some)
        / before.loads(some)
        for count in (1, 4, 8)
    ]
    assert np.log([one.mean() for one in moved]) == pytest.approx(
        [np.log(1.1) * count / (count + 1) for count in (1, 4, 8)]
    )
