"""Big binaries may differ by more from minute to minute than small ones."""

from dataclasses import asdict

import numpy as np
import pytest

from bignas.latency.repeatability import Repeatability

LATENCIES_MS = np.geomspace(0.05, 1.0, 80)


def measured_twice(exponent: float, seed: int) -> Repeatability:
    """What is found where a measurement deviates by 1% at 0.2 ms, and by another share elsewhere.

    A tenth of the differences are far bigger than that.
    """
    random = np.random.default_rng(seed)
    deviation = 0.01 * np.sqrt(2) * (LATENCIES_MS / 0.2) ** exponent
    differences = random.normal(0, deviation)
    differences[::10] *= 5
    return Repeatability.of_differences(LATENCIES_MS.tolist(), differences.tolist())


def test_growth_with_latency_is_found() -> None:
    found = [measured_twice(0.8, seed) for seed in range(40)]
    assert np.median([one.at(0.1) for one in found]) == pytest.approx(0.01 / 2**0.8, rel=0.3)
    assert np.median([one.at(0.8) for one in found]) == pytest.approx(0.01 * 4**0.8, rel=0.3)


def test_growth_that_chance_explains_is_hardly_one() -> None:
    found = [measured_twice(0.0, seed) for seed in range(200)]
    assert np.mean([abs(one.exponent) for one in found]) < 0.08  # 0.11 without shrinking
    assert np.mean([one.exponent == 0.0 for one in found]) > 0.5
    assert np.median([one.at(0.8) for one in found]) == pytest.approx(0.01, rel=0.3)


def test_nothing_is_said_about_longer_ones_than_were_measured() -> None:
    found = measured_twice(0.8, 0)
    assert found.at(100.0) == found.at(1.0)


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.01, -0.01, 0.01]])
def test_the_same_difference_of_all_grows_with_nothing(differences: list[float]) -> None:
    found = Repeatability.of_differences([1.0, 2.0, 4.0], differences)
    assert found.exponent == pytest.approx(0.0, abs=1e-9)
    assert (found.at(1.0) > 0) == any(differences)


def test_it_comes_back_from_a_file() -> None:
    found = measured_twice(0.5, 1)
    assert Repeatability.from_dict(asdict(found)) == found
