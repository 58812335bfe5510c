"""What a machine is off by since it was profiled, from references measured again."""

import numpy as np
import pytest

from bignas.latency.drift import Drift, estimate_drift, references
from tests.latency.synthetic import draw, make_space

PROFILED = [(one, 1.0 + place) for place, one in enumerate(draw(make_space(), 40, 0))]


def ratios(
    of_batches: list[float], deviation: float, count: int = 5, seed: int = 0
) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [one + random.normal(0, deviation, count) for one in of_batches]


def drifts(log_ratios: list[np.ndarray]) -> np.ndarray:
    """Of the batches, for references of all batches that take equally long."""
    predicted_ms = [np.full(len(one), 2.0) for one in log_ratios]
    found = estimate_drift(predicted_ms, [2.0 * np.exp(one) for one in log_ratios])
    assert found.slope == 0.0
    return found.of(np.arange(len(log_ratios)), np.full(len(log_ratios), 7.0))


def test_what_all_references_show_is_the_drift() -> None:
    assert drifts([np.full(5, 0.02)] * 3) == pytest.approx([0.02] * 3)
    assert drifts([np.array([0.01, 0.03])]) == pytest.approx([0.02])
    assert drifts([np.array([0.04])]) == pytest.approx([0.04])


def test_batches_that_differ_by_chance_share_their_drift() -> None:
    spreads = []
    for seed in range(30):
        found = ratios([0.01] * 6, 0.01, seed=seed)
        means = [one.mean() for one in found]
        shrunk = drifts(found)
        assert shrunk.mean() == pytest.approx(np.mean(means))
        spreads.append(np.std(shrunk) / np.std(means))
    assert np.median(spreads) < 0.35


def test_batches_that_differ_by_more_keep_their_own() -> None:
    true = [0.0, 0.0, 0.03, 0.03, -0.02, -0.02]
    assert drifts(ratios(true, 0.003)) == pytest.approx(true, abs=0.005)


def test_batches_of_exact_references_keep_theirs() -> None:
    assert drifts([np.full(4, 0.01), np.full(4, 0.05)]) == pytest.approx([0.01, 0.05])


def test_a_batch_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="no drift"):
        drifts([np.zeros(3), np.zeros(0)])


LATENCIES_MS = [np.array([0.1, 0.2, 0.4, 0.8, 1.6]) * (1 + 0.1 * batch) for batch in range(6)]


def sloped(slope: float, deviation: float, seed: int) -> Drift:
    """What is found where networks of 1 ms drift by 1%, and others by more."""
    random = np.random.default_rng(seed)
    ratios = [
        0.01 + slope * np.log(one) + random.normal(0, deviation, len(one)) for one in LATENCIES_MS
    ]
    now_ms = [one * np.exp(ratio) for one, ratio in zip(LATENCIES_MS, ratios, strict=True)]
    return estimate_drift(LATENCIES_MS, now_ms)


def test_networks_of_other_sizes_drift_by_other_shares() -> None:
    wanted = 0.01 + 0.02 * np.log([0.05, 1.0, 3.0])
    batch = np.array([0, 3, 5])
    exact = sloped(0.02, 0.0, 0).of(batch, np.array([0.05, 1.0, 3.0]))
    assert exact == pytest.approx(wanted)
    noisy = sloped(0.02, 0.005, 0).of(batch, np.array([0.05, 1.0, 3.0]))
    assert noisy == pytest.approx(wanted, abs=0.01)


def test_a_slope_that_chance_explains_is_hardly_one() -> None:
    """Without shrinking its mean size would be that of its standard error, 0.002."""
    slopes = [abs(sloped(0.0, 0.01, seed).slope) for seed in range(200)]
    assert np.mean(slopes) < 0.001
    assert np.mean(np.equal(slopes, 0.0)) > 0.5


@pytest.mark.parametrize(("of_batches", "slope"), [(0.0, 0.0), (0.0, 0.02), (0.02, 0.02)])
def test_how_far_a_drift_may_be_off_is_how_far_it_is_off(of_batches: float, slope: float) -> None:
    """Root mean squares over draws, at both ends and in the middle; 6 batches of 5 references."""
    log_ms, batch = np.log([0.1, 0.4, 1.6]), np.arange(6)[:, None]
    errors, deviations = [], []
    for seed in range(300):
        random = np.random.default_rng(seed)
        levels = 0.01 + random.normal(0, of_batches, 6)
        true = levels[:, None] + slope * log_ms
        now_ms = [
            one * np.exp(level + slope * np.log(one) + random.normal(0, 0.01, len(one)))
            for one, level in zip(LATENCIES_MS, levels, strict=True)
        ]
        found = estimate_drift(LATENCIES_MS, now_ms)
        errors.append(found.of(batch, np.exp(log_ms)) - true)
        deviations.append(found.deviation(batch, np.exp(log_ms)))
    off, said = (np.sqrt(np.mean(np.square(one), axis=(0, 1))) for one in (errors, deviations))
    assert np.all(off < 1.15 * said)
    assert np.all(said < 1.35 * off)


@pytest.mark.parametrize("slope", [0.0, 0.02])
def test_the_scatter_is_that_of_single_references(slope: float) -> None:
    found = [sloped(slope, 0.01, seed).scatter for seed in range(300)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.01, rel=0.05)


def test_exact_references_leave_nothing_open() -> None:
    exact = sloped(0.02, 0.0, 0)
    assert exact.scatter == pytest.approx(0.0, abs=1e-9)
    assert exact.deviation(np.arange(6), np.full(6, 3.0)) == pytest.approx(np.zeros(6), abs=1e-9)
    none = Drift.none(3)
    assert none.scatter == 0.0
    assert none.of(np.arange(3), np.full(3, 2.0)) == pytest.approx(np.zeros(3))
    assert none.deviation(np.arange(3), np.full(3, 2.0)) == pytest.approx(np.zeros(3))


def test_references_are_spread_and_batches_share_none() -> None:
    batches = [references(PROFILED, 5, number) for number in range(8)]
    found = [one for batch in batches for one in batch]
    assert len(set(found)) == len(found) == 40
    latency_ms = dict(PROFILED)
    for batch in batches:
        latencies = [latency_ms[one] for one in batch]
        assert latencies == sorted(latencies)
        assert latencies[0] <= 8
        assert latencies[-1] >= 33
    assert references(PROFILED, 5, 8) == batches[0]
    assert len(references(PROFILED[:3], 5, 1)) == 3
    assert references([], 5, 0) == []
