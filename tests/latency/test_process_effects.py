"""Effects of measuring processes: found where networks tell them apart, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from bignas.compile.workload import workloads
from bignas.latency.process_effects import NetworkReading, ProcessEffects
from bignas.latency.subnets import spread_sample
from bignas.supernet.architecture import Architecture
from bignas.supernet.spaces import load_space
from tests.latency.tiny import TINY, kernel_record

NETWORKS = spread_sample(load_space("cifar"), 40, np.random.default_rng(0))


def readings(
    networks: list[Architecture], factors: list[float], session: str = "one", noise: float = 0.005
) -> list[NetworkReading]:
    """All networks, a millisecond each, in as many processes as there are factors."""
    random = np.random.default_rng(1)
    return [
        NetworkReading(one, session, process, factor * float(np.exp(random.normal(0, noise))))
        for process, factor in enumerate(factors)
        for one in networks
    ]


def expected(networks: list[Architecture], latency_ms: float = 1.0) -> dict[Architecture, float]:
    return dict.fromkeys(networks, latency_ms)


def test_what_a_process_is_off_by_is_taken_away() -> None:
    found = readings(NETWORKS, [1.0, 1.05, 0.96, 1.0, 1.0])
    effects = ProcessEffects.estimate(found, expected(NETWORKS))
    steady = [effects.without(one) for one in found]
    assert np.std(np.log(steady)) < 0.007 < np.std(np.log([one.latency_ms for one in found])) / 4
    assert np.mean(np.log(steady)) == pytest.approx(0, abs=0.003)


def test_disturbed_networks_do_not_move_their_process() -> None:
    found = [
        replace(one, latency_ms=2.0) if number % 10 == 0 else one
        for number, one in enumerate(readings(NETWORKS, [1.0, 1.0, 1.0]))
    ]
    effects = ProcessEffects.estimate(found, expected(NETWORKS))
    assert max(abs(one) for one in effects.effects.values()) < 0.004


def test_what_all_processes_of_a_session_share_belongs_to_the_networks() -> None:
    """A search measures networks of one region, which may all take more than predicted."""
    found = readings(NETWORKS[:8], [1.06, 1.06, 1.06, 1.06, 1.10])
    effects = ProcessEffects.estimate(found, expected(NETWORKS))
    steady = np.array([effects.without(one) for one in found])
    assert np.median(steady) == pytest.approx(1.06, rel=0.005)
    assert steady[-8:].max() < 1.085  # that of the last process is gone


def test_sessions_are_no_evidence_against_each_other() -> None:
    networks, others = NETWORKS[:20], NETWORKS[20:]
    found = readings(networks, [1.0] * 3) + readings(others, [1.08] * 3, session="two")
    effects = ProcessEffects.estimate(found, expected(NETWORKS))
    assert max(abs(one) for one in effects.effects.values()) < 0.004


def test_a_process_of_one_network_tells_nothing() -> None:
    found = [NetworkReading(one, "one", n, 1 + 0.01 * n) for n, one in enumerate(NETWORKS)]
    effects = ProcessEffects.estimate(found, expected(NETWORKS))
    assert [effects.without(one) for one in found] == [one.latency_ms for one in found]
    assert effects.deviation == 0


@pytest.mark.parametrize("deviation", [0.004, 0.02])
def test_the_deviation_of_processes_is_known(deviation: float) -> None:
    factors = np.exp(np.random.default_rng(2).normal(0, deviation, 200))
    found = readings(NETWORKS[:12], factors.tolist(), noise=0.001)
    effects = ProcessEffects.estimate(found, expected(NETWORKS))
    assert effects.deviation == pytest.approx(deviation, rel=0.2)


def test_nothing_measured_has_no_effects() -> None:
    assert ProcessEffects.estimate([], {}) == ProcessEffects({}, 0.0)


def test_processes_are_told_apart_by_what_the_machine_did() -> None:
    record = kernel_record("board", workloads(TINY, TINY.smallest())[0], "", [1e6], "code")
    other = replace(record, environment=replace(record.environment, context_switches=17))
    first, again, second = (NetworkReading.of(one, NETWORKS[0]) for one in (record, record, other))
    assert first == again
    assert first.latency_ms == 1.0
    assert (first.session, first.process) != (second.session, second.process)
