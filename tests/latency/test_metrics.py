"""Properties of the figures that `predictor evaluate` reports."""

import math

import numpy as np
import pytest

from bignas.latency.metrics import agreeing_mean, coverage, mape, spearman, spread, within


def test_a_perfect_prediction_has_perfect_figures() -> None:
    measured = [1.0, 2.0, 4.0]
    assert mape(measured, measured) == 0
    assert within(measured, measured, 0.0) == 1
    assert spearman(measured, measured) == pytest.approx(1)
    assert coverage(measured, measured, measured) == 1


def test_errors_are_relative_to_the_measured_value() -> None:
    assert mape([1.1, 1.8], [1.0, 2.0]) == pytest.approx(0.1)
    assert within([1.04, 2.5], [1.0, 2.0], 0.05) == 0.5


def test_ranks_ignore_the_scale_and_are_undefined_for_constants() -> None:
    measured = np.array([1.0, 2.0, 3.0, 5.0])
    assert spearman(measured**3, measured) == pytest.approx(1)
    assert spearman(-measured, measured) == pytest.approx(-1)
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0], [1.0]))


def test_coverage_counts_the_ends_of_an_interval() -> None:
    assert coverage([1, 1, 1], [2, 2, 2], [1, 2, 2.1]) == pytest.approx(2 / 3)


def test_the_spread_is_that_of_repetitions_whatever_is_repeated() -> None:
    random = np.random.default_rng(0)
    true_ms = np.exp(random.normal(0, 1, (4000, 1)))
    noise = np.exp(random.normal(0, 0.02, (4000, 3)))
    assert spread(true_ms * noise) == pytest.approx(0.02, rel=0.1)
    assert spread(true_ms * np.ones((4000, 3))) == pytest.approx(0, abs=1e-12)
    assert spread(true_ms) == 0


def test_the_spread_is_that_of_the_calm_ones_when_two_of_five_are_disturbed() -> None:
    random = np.random.default_rng(0)
    repeated_ms = np.exp(random.normal(0, 0.01, (100, 5)))
    repeated_ms[:, 1] *= 1.2
    repeated_ms[:, 3] *= 1.1
    assert 0.009 < spread(repeated_ms) < 0.035
    assert spread(repeated_ms[:, [0, 1]]) > 0.05


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_meaningless_input_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected|positive"):
        mape(first, second)


def test_of_several_measurements_the_undisturbed_ones_are_averaged() -> None:
    assert agreeing_mean([1.0]) == 1.0
    assert agreeing_mean([1.02, 1.0]) == pytest.approx(1.01)
    assert agreeing_mean([1.5, 1.0, 1.02]) == pytest.approx(1.01)
    assert agreeing_mean([1.5, 1.0]) == 1.0
    assert agreeing_mean([1.5, 1.0, 1.52]) == pytest.approx(1.51)
