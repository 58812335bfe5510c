"""The line through a few networks: what it finds, how it is held back, where it ends."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from bignas.compile.workload import workloads
from bignas.latency.features import weight_bytes
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import space_workloads
from bignas.latency.regression import Correction, Fit, ModelKind
from bignas.latency.weight_line import BEYOND, fit_weight_line
from bignas.supernet.architecture import Architecture
from tests.latency.synthetic import draw, kernel_us, make_space

Array = NDArray[np.float64]

COLUMN = 1
SPACE = make_space()


def features(log_weights: Array) -> Array:
    """Rows whose other columns tell nothing."""
    others = np.random.default_rng(3).normal(size=(len(log_weights), 3))
    return np.insert(others, COLUMN, log_weights, axis=1)


def fitted(log_weights: Array, targets: Array) -> Fit:
    return fit_weight_line(features(log_weights), COLUMN, targets)


def test_a_line_is_found() -> None:
    log_weights = np.linspace(10, 14, 6)
    targets = -0.2 + 0.015 * log_weights
    correction = fitted(log_weights, targets).correction
    assert correction.kind is ModelKind.LINE
    between = np.linspace(10, 14, 21)
    predicted = correction.predict(features(between))
    assert predicted == pytest.approx(-0.2 + 0.015 * between, abs=0.002)


@pytest.mark.parametrize("target", [-0.1, 0.03])
def test_one_network_is_believed_in_part(target: float) -> None:
    predicted = fitted(np.array([12.0]), np.array([target])).correction.predict(
        features(np.array([11.5, 12.0, 12.5]))
    )
    assert np.ptp(predicted) == 0
    assert 0.9 < predicted[0] / target < 1


def test_residuals_are_those_of_fits_without_the_network() -> None:
    random = np.random.default_rng(0)
    log_weights, targets = random.uniform(10, 14, 7), random.normal(0, 0.02, 7)
    rows, whole = features(log_weights), fitted(log_weights, targets)
    for place in range(7):
        rest = np.arange(7) != place
        # the same line, if not the same centre: its prior is of the level there
        shifted = fit_weight_line(rows[rest], COLUMN, targets[rest]).correction
        residual = targets[place] - shifted.predict(rows[[place]])[0]
        assert whole.residuals[place] == pytest.approx(residual, abs=0.003)


def test_the_line_ends_beyond_what_was_seen() -> None:
    correction = fitted(np.array([11.0, 12.0, 13.0]), np.array([0.0, 0.02, 0.04])).correction
    far = features(np.array([13.0, 13.0 + BEYOND, 13.0 + 2 * BEYOND]))
    seen, end, beyond = correction.predict(far)
    assert seen < end == beyond


def test_a_line_survives_saving() -> None:
    correction = fitted(np.array([11.0, 12.0, 13.0]), np.array([0.0, 0.02, 0.05])).correction
    again = Correction.from_dict(json.loads(json.dumps(correction.to_dict(), allow_nan=False)))
    rows = features(np.linspace(5, 20, 9))
    assert again.predict(rows).tolist() == correction.predict(rows).tolist()


def test_three_networks_halve_the_error() -> None:
    """Networks of fewer weights are faster than the sum of their kernels."""

    def latency_ms(one: Architecture) -> float:
        layers = workloads(SPACE, one)
        octaves = np.log2(sum(map(weight_bytes, layers)))
        return sum(map(kernel_us, layers)) / 1e3 * float(np.exp(-0.05 + 0.02 * (octaves - 20)))

    table = KernelTable({one: kernel_us(one) for one in space_workloads(SPACE)}, "it", "code")
    test = draw(SPACE, 200, 77)
    truth = [latency_ms(one) for one in test]
    errors = [
        mape(LatencyPredictor.fit(SPACE, table, networks).predict(test).latency_ms, truth)
        for networks in ([], [(one, latency_ms(one)) for one in draw(SPACE, 3, 5)])
    ]
    assert errors[1] < errors[0] / 2
