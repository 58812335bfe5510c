"""What a machine is off by since it was profiled, from references measured again."""

import numpy as np
import pytest

from bignas.latency.drift import drifts, references
from tests.latency.synthetic import draw, make_space

PROFILED = [(one, 1.0 + place) for place, one in enumerate(draw(make_space(), 40, 0))]


def ratios(
    of_batches: list[float], deviation: float, count: int = 5, seed: int = 0
) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [one + random.normal(0, deviation, count) for one in of_batches]


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


def test_references_are_spread_and_batches_share_none() -> None:
    batches = [references(PROFILED, 5, number) for number in range(8)]
    found = [one for batch in batches for one, _ in batch]
    assert len(set(found)) == len(found) == 40
    for batch in batches:
        latencies = [ms for _, ms in batch]
        assert latencies == sorted(latencies)
        assert latencies[0] <= 8
        assert latencies[-1] >= 33
    assert references(PROFILED, 5, 8) == batches[0]
    assert len(references(PROFILED[:3], 5, 1)) == 3
    assert references([], 5, 0) == []
