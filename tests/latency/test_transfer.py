"""Transfer gains from sources that help, and loses little by sources that do not."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bignas.device_db.errors import InputError
from bignas.latency.metrics import mape, spearman
from bignas.latency.transfer import transfer
from bignas.latency.transfer_prior import TransferProblem, components
from tests.latency.transfer_tables import COUNT, device, one_hot, problem

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def oracle(truth_ms: Array) -> Callable[[Indices], Array]:
    return lambda indices: truth_ms[indices]


def error(known: TransferProblem, truth_ms: Array, samples: int = 16) -> float:
    """Mean over three seeds of the error on what was not measured."""
    errors = []
    for seed in range(3):
        found = transfer(known, oracle(truth_ms), samples, seed)
        rest = np.setdiff1d(np.arange(known.count), found.measured)
        errors.append(mape(found.latency_ms[rest], truth_ms[rest]))
    return float(np.mean(errors))


def test_a_perfect_source_makes_five_measurements_enough() -> None:
    features = one_hot()
    truth_ms = device(features, seed=1)
    perfect = 7.0 * truth_ms  # in another unit
    with_it = error(problem(features, perfect, device(features, 2)), truth_ms, samples=5)
    assert with_it < 0.02
    assert with_it < 0.5 * error(problem(features), truth_ms, samples=5)


def test_related_sources_help() -> None:
    features = one_hot()
    truth_ms = device(features, seed=1)
    related = [device(features, seed) for seed in range(2, 8)]
    assert error(problem(features, *related), truth_ms) < 0.8 * error(problem(features), truth_ms)


@pytest.mark.parametrize("kind", ["noise", "opposite", "unrelated"])
def test_misleading_sources_hardly_hurt(kind: str) -> None:
    # A dozen components that explain nothing are tried against 16 samples: a quarter more error
    # (measured: at most 4%) is what believing in one of them now and then may cost.
    features = one_hot()
    truth_ms = device(features, seed=1)
    rng = np.random.default_rng(5)
    sources = {
        "noise": [rng.uniform(1, 3, COUNT) for _ in range(5)],
        "opposite": [2 * truth_ms.max() - truth_ms * rng.uniform(0.9, 1.1) for _ in range(5)],
        "unrelated": [1 + features @ rng.uniform(0.1, 1, features.shape[1]) for _ in range(5)],
    }[kind]
    assert error(problem(features, *sources), truth_ms) < 1.25 * error(problem(features), truth_ms)


def test_the_order_and_the_unit_of_sources_do_not_matter() -> None:
    features = one_hot()
    truth_ms = device(features, seed=1)
    sources = [device(features, seed) for seed in range(2, 6)]
    shuffled = [sources[2] * 1000, sources[0], sources[3] / 8, sources[1]]
    first = transfer(problem(features, *sources), oracle(truth_ms), 12, seed=0)
    second = transfer(problem(features, *shuffled), oracle(truth_ms), 12, seed=0)
    assert first.measured.tolist() == second.measured.tolist()
    assert first.latency_ms == pytest.approx(second.latency_ms, rel=1e-6)


def test_the_unit_of_the_target_does_not_matter() -> None:
    features = one_hot()
    truth_ms = device(features, seed=1)
    known = problem(features, device(features, 2))
    first = transfer(known, oracle(truth_ms), 10, seed=0)
    second = transfer(known, oracle(1000 * truth_ms), 10, seed=0)
    assert second.latency_ms == pytest.approx(1000 * first.latency_ms, rel=1e-6)


def test_a_seed_gives_the_same_result_and_nothing_is_measured_twice() -> None:
    features = one_hot()
    truth_ms = device(features, seed=1)
    known = problem(features, device(features, 2), device(features, 3))
    first, second = (transfer(known, oracle(truth_ms), 15, seed=4) for _ in range(2))
    assert np.array_equal(first.latency_ms, second.latency_ms)
    assert np.array_equal(first.measured, second.measured)
    assert len(set(first.measured.tolist())) == 15
    assert np.array_equal(first.measured_ms, truth_ms[first.measured])


def test_one_disturbed_measurement_does_not_ruin_it() -> None:
    features = one_hot()
    truth_ms = device(features, seed=1)
    known = problem(features, *(device(features, seed) for seed in range(2, 8)))
    chosen = np.random.default_rng(0).choice(COUNT, 16, replace=False)
    disturbed = truth_ms.copy()
    disturbed[chosen[3]] *= 3
    rest = np.setdiff1d(np.arange(COUNT), chosen)
    found = transfer(known, oracle(disturbed), 16, seed=0, chosen=chosen)
    clean = transfer(known, oracle(truth_ms), 16, seed=0, chosen=chosen)
    assert mape(found.latency_ms[rest], truth_ms[rest]) < 0.1
    assert spearman(clean.latency_ms[rest], truth_ms[rest]) > 0.9


def test_many_measurements_learn_what_is_no_sum() -> None:
    features = one_hot()
    pair = 1 + features[:, 0] * features[:, 5] + features[:, 9] * features[:, 17]
    truth_ms = device(features, seed=1, noise=0.001) * pair
    order = np.random.default_rng(0).permutation(COUNT)
    errors = []
    for samples in (40, 300):
        found = transfer(
            problem(features), oracle(truth_ms), samples, seed=0, chosen=order[:samples]
        )
        errors.append(mape(found.latency_ms[order[300:]], truth_ms[order[300:]]))
    assert errors[1] < 0.7 * errors[0]


def test_predictions_are_positive() -> None:
    features = one_hot()
    truth_ms = device(features, seed=1) ** 6
    found = transfer(problem(features, device(features, 2)), oracle(truth_ms), 8, seed=0)
    assert (found.latency_ms > 0).all()


def test_a_device_where_all_take_the_same_time() -> None:
    features = one_hot()
    found = transfer(problem(features), oracle(np.full(COUNT, 2.0)), 6, seed=0)
    assert found.latency_ms == pytest.approx(np.full(COUNT, 2.0))


def test_components_without_variation_are_left_out() -> None:
    features = one_hot()
    names = components(problem(features, np.full(COUNT, 3.0)))
    assert set(names) == {"counts", "columns"}


@pytest.mark.parametrize("samples", [0, COUNT + 1])
def test_impossible_numbers_of_samples(samples: int) -> None:
    features = one_hot()
    with pytest.raises(InputError, match="cannot be measured"):
        transfer(problem(features), oracle(device(features, 1)), samples, seed=0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_measurements_that_are_no_latencies(value: float) -> None:
    features = one_hot()
    with pytest.raises(InputError, match="positive number"):
        transfer(problem(features), oracle(np.full(COUNT, value)), 5, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((0, 3))}, "filled table"),
        ({"features": np.full((4, 2), np.nan)}, "not finite"),
        ({"sources_ms": np.ones((2, 5))}, "do not fit 4 architectures"),
        ({"sources_ms": np.array([[1.0, 2, np.inf, 4]])}, "not finite"),
        ({"sources_ms": np.array([[1.0, 2, 0, 4]])}, "must be positive"),
        ({"sources_ms": np.array([[1.0, 2, 3, 1e9]])}, "source 0 differ"),
        ({"estimates": np.array([[1.0, 2, -3, 4]])}, "not negative"),
        ({"partitions": (np.zeros(3, dtype=np.int64),)}, "group to every feature"),
    ],
)
def test_problems_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransferProblem(**({"features": np.eye(4)[:, :2]} | change))  # type: ignore[arg-type]
