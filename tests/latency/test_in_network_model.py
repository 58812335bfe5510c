"""Kernels in networks, on a made-up device: weights come from farther away in big networks."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from bignas.compile.workload import workloads
from bignas.device_db.workload import Workload
from bignas.latency.features import weight_bytes
from bignas.latency.in_network_model import FEWEST_NETWORKS, InNetworkModel
from bignas.latency.in_network_readings import InNetworkReadings, NetworkKernels
from bignas.latency.metrics import mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.recording import space_label
from bignas.supernet.architecture import Architecture
from tests.latency.synthetic import all_kernels, draw, kernel_us, make_space, make_table

SPACE = make_space()
TRAIN = draw(SPACE, 60, 1)
TEST = draw(SPACE, 60, 2)
TABLE = make_table(all_kernels(SPACE, [*TRAIN, *TEST]), noise=0.0)
CACHE_BYTES = float(np.median([4 * SPACE.params(one) for one in TRAIN]))


def read_bytes(architecture: Architecture) -> int:
    return sum(weight_bytes(one) for one in workloads(SPACE, architecture))


def within_us(work: Workload, network_bytes: float) -> float:
    """What a kernel takes: weights cost more, the less of the network's the cache holds."""
    missed = np.clip(np.log2(network_bytes / CACHE_BYTES) + 0.5, 0.0, 1.0)
    return kernel_us(work) + float(missed) * weight_bytes(work) / 3e3


def network_us(architecture: Architecture) -> float:
    size = read_bytes(architecture)
    return sum(within_us(one, size) for one in workloads(SPACE, architecture))


def reading(architecture: Architecture, factor: float = 1.0) -> NetworkKernels:
    size = read_bytes(architecture)
    calls = {one: factor * within_us(one, size) for one in workloads(SPACE, architecture)}
    return NetworkKernels(
        (space_label(SPACE), architecture.key), size, factor * network_us(architecture), calls
    )


def readings(
    architectures: Sequence[Architecture], factors: Mapping[int, float] | None = None
) -> InNetworkReadings:
    found = factors or {}
    return InNetworkReadings(
        [reading(one, found.get(place, 1.0)) for place, one in enumerate(architectures)],
        {one: weight_bytes(one) for one in TABLE},
    )


def taken(architectures: Sequence[Architecture]) -> list[tuple[Architecture, float]]:
    return [(one, network_us(one) / 1e3) for one in architectures]


PLAIN = LatencyPredictor.of_kernels(SPACE, TABLE)
MODEL = InNetworkModel.fit(readings(TRAIN), TABLE)


def sum_us(model: InNetworkModel, architecture: Architecture) -> float:
    works = workloads(SPACE, architecture)
    return float(model.in_network_us(works, np.array([TABLE[one] for one in works])).sum())


def test_kernels_of_other_networks_are_predicted_as_they_run_there() -> None:
    truth = np.array([network_us(one) for one in TEST])
    alone = [1e3 * float(one) for one in PLAIN.kernel_sums_ms(TEST)]
    assert mape(np.array(alone), truth) > 0.05
    assert mape(np.array([sum_us(MODEL, one) for one in TEST]), truth) < 0.015


def test_a_kernel_deviates_in_its_own_way() -> None:
    odd = max(TABLE, key=lambda work: sum(work in workloads(SPACE, one) for one in TRAIN))
    networks = [
        replace(
            one,
            latencies_us={k: us * (1.5 if k == odd else 1) for k, us in one.latencies_us.items()},
        )
        for one in readings(TRAIN).networks
    ]
    model = InNetworkModel.fit(replace(readings(TRAIN), networks=networks), TABLE)
    works, alone = [odd], np.array([TABLE[odd]])
    assert model.in_network_us(works, alone) == pytest.approx(
        1.5 * MODEL.in_network_us(works, alone), rel=0.1
    )


def test_few_networks_teach_nothing() -> None:
    model = InNetworkModel.fit(readings(TRAIN[: FEWEST_NETWORKS - 1]), TABLE)
    assert model == InNetworkModel()
    assert sum_us(model, TEST[0]) == pytest.approx(sum(TABLE[o] for o in workloads(SPACE, TEST[0])))
    assert InNetworkModel.fit(readings(TRAIN[:FEWEST_NETWORKS]), TABLE).trees is not None
    assert InNetworkModel.fit(readings(TRAIN), {}) == InNetworkModel()


def test_a_disturbed_reading_is_bounded() -> None:
    """One network took a hundred times as long: nothing is predicted to."""
    model = InNetworkModel.fit(readings(TRAIN, {3: 100.0}), TABLE)
    ratios = [sum_us(model, one) / sum_us(MODEL, one) for one in TEST]
    assert max(ratios) < 1.3


def test_sizes_between_and_beyond_those_known_are_interpolated() -> None:
    sizes = np.array(MODEL.sizes)
    assert (np.diff(sizes) > 0).all()
    for place, size in enumerate(sizes):
        lower, upper, share = MODEL.between(np.array([2.0**size]))
        assert (1 - share) * lower + share * upper == pytest.approx([place], abs=1e-6)
    asked = np.array([1.0, 2 ** sizes[0] / 8, 2 ** sizes[-1] * 8])
    lower, upper, share = MODEL.between(asked)
    positions = (1 - share) * lower + share * upper
    assert positions == pytest.approx([0, 0, len(sizes) - 1])
    middle = MODEL.between(2.0 ** np.linspace(sizes[0], sizes[-1], 101))
    assert (np.diff((1 - middle[2]) * middle[0] + middle[2] * middle[1]) > 0).all()
    lower, upper, share = InNetworkModel().between(asked)
    assert (lower == 0).all()
    assert (upper == 0).all()


def test_it_survives_json() -> None:
    again = InNetworkModel.from_dict(json.loads(json.dumps(MODEL.to_dict())))
    assert [sum_us(again, one) for one in TEST] == [sum_us(MODEL, one) for one in TEST]
    assert again.to_dict() == MODEL.to_dict()
    assert InNetworkModel.from_dict(InNetworkModel().to_dict()) == InNetworkModel()
    with pytest.raises(ValueError, match="have to rise"):
        InNetworkModel.from_dict({**MODEL.to_dict(), "sizes": [2.0, 1.0]})


# --- predictors -----------------------------------------------------------------------------------


def test_predictors_are_better_with_readings() -> None:
    truth_ms = np.array([network_us(one) / 1e3 for one in TEST])
    without = PLAIN.corrected(taken(TRAIN))
    fitted = PLAIN.corrected(taken(TRAIN), readings=readings(TRAIN))
    error = mape(fitted.predict(TEST).latency_ms, truth_ms)
    assert error < 0.6 * mape(without.predict(TEST).latency_ms, truth_ms)
    assert error < 0.01
    again = LatencyPredictor.from_bytes(fitted.to_bytes())
    assert np.array_equal(again.predict(TEST).latency_ms, fitted.predict(TEST).latency_ms)
    assert again.to_bytes() == fitted.to_bytes()


def test_the_kernels_shown_are_those_of_the_prediction() -> None:
    fitted = PLAIN.corrected(taken(TRAIN), readings=readings(TRAIN))
    sums = fitted.sums(TEST)
    for place, one in enumerate(TEST[:10]):
        kernels = fitted.kernels(one)
        assert [each.workload for each in kernels] == list(workloads(SPACE, one))
        assert sum(each.latency_us for each in kernels) == pytest.approx(sums.within_us[place])
    assert fitted.kernel_sums_ms(TEST) == pytest.approx(PLAIN.kernel_sums_ms(TEST))


def test_what_a_process_was_off_by_does_not_matter() -> None:
    factors = {place: 0.7 + 0.1 * (place % 7) for place in range(len(TRAIN))}
    fitted = PLAIN.corrected(taken(TRAIN), readings=readings(TRAIN, factors))
    expected = PLAIN.corrected(taken(TRAIN), readings=readings(TRAIN))
    assert fitted.predict(TEST).latency_ms == pytest.approx(
        expected.predict(TEST).latency_ms, rel=1e-6
    )


def test_what_is_left_out_is_left_out_of_the_readings_too() -> None:
    """Each network deviates by chance, and its kernels with it: nothing can predict that."""
    random = np.random.default_rng(0)
    chance = {place: math.exp(random.normal(0, 0.05)) for place in range(len(TRAIN))}
    found = [(one, ms * chance[place]) for place, (one, ms) in enumerate(taken(TRAIN))]
    held_out = PLAIN.held_out_ms(found, readings=readings(TRAIN, chance))
    errors = [math.log(held_out[one] / ms) for one, ms in found]
    assert np.std(errors) > 0.045


def test_readings_that_do_not_help_are_not_used() -> None:
    """Networks take what their kernels take alone, whatever the probes say of the kernels."""
    random = np.random.default_rng(3)
    noise = [
        replace(
            one,
            latencies_us={
                work: us * math.exp(random.normal(0, 0.5)) for work, us in one.latencies_us.items()
            },
        )
        for one in readings(TRAIN).networks
    ]
    plain = [(one, float(PLAIN.kernel_sums_ms([one])[0])) for one in TRAIN]
    fitted = PLAIN.corrected(plain, readings=replace(readings(TRAIN), networks=noise))
    assert fitted.within == InNetworkModel()
    assert fitted.predict(TEST).latency_ms == pytest.approx(PLAIN.kernel_sums_ms(TEST))
