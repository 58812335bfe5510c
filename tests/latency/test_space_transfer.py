"""Transfer between made-up devices for a search space of our own."""

import numpy as np
import pytest

from bignas.device_db.errors import InputError
from bignas.latency.metrics import mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.space_transfer import space_problem
from bignas.latency.transfer import transfer
from bignas.supernet.spaces import load_space
from tests.latency.synthetic import all_kernels, draw, make_space, make_table


def test_a_known_device_tells_about_a_new_one() -> None:
    space = make_space()
    architectures = list(dict.fromkeys(draw(space, 300, seed=0)))
    known = LatencyPredictor.fit(space, make_table(all_kernels(space, architectures)), [])
    problem = space_problem(space, architectures, [known])
    assert problem.features.sum(axis=1) == pytest.approx(3 + 4 * len(space.stages))
    # the new device is slower, and more so where memory traffic counts
    traffic = problem.estimates[1]
    truth_ms = 3 * problem.sources_ms[0] + 2e-6 * traffic
    found = transfer(problem, lambda indices: truth_ms[indices], 10, seed=0)
    rest = np.setdiff1d(np.arange(problem.count), found.measured)
    assert mape(found.latency_ms[rest], truth_ms[rest]) < 0.02


def test_predictors_of_other_spaces_are_refused() -> None:
    space = make_space()
    architectures = draw(space, 5, seed=0)
    known = LatencyPredictor.fit(space, make_table(all_kernels(space, architectures)), [])
    other = load_space("cifar")
    with pytest.raises(InputError, match="search space"):
        space_problem(other, draw(other, 5, seed=0), [known])
