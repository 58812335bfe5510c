"""What networks make of kernels: read off where it was measured, estimated where it was not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from bignas.compile.schedule import Schedule
from bignas.compile.workload import workloads
from bignas.device_db.measurement import Measurement, Subject
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.context import KernelContext, context_readings
from bignas.latency.evidence import evidence_hash
from bignas.latency.fitting import fit_predictor
from bignas.latency.metrics import mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import space_workloads
from bignas.latency.recording import space_label
from bignas.latency.subnets import spread_sample
from bignas.latency.tuned import TunedKernel
from bignas.supernet.architecture import Architecture
from tests.latency.synthetic import CODE, all_kernels, draw, kernel_us, make_space, make_table
from tests.latency.tiny import TINY, kernel_record

SPACE = make_space()
TRAIN, TEST = draw(SPACE, 60, 3), draw(SPACE, 100, 4)
KERNELS = all_kernels(SPACE, [*TRAIN, *TEST])
TABLE = make_table(KERNELS, noise=0.0)
FACTORS = dict(
    zip(KERNELS, np.exp(np.random.default_rng(0).normal(0.1, 0.15, len(KERNELS))), strict=True)
)
TEXT = Schedule().to_text()


def within_us(work: Workload) -> float:
    """Networks make something of each kernel that its shape does not tell."""
    return kernel_us(work) * float(FACTORS[work])


def readings(
    architectures: Sequence[Architecture], noise: float = 0.0
) -> dict[Workload, dict[str, float]]:
    random = np.random.default_rng(1)
    found: dict[Workload, dict[str, float]] = {}
    for one in architectures:
        for work in workloads(SPACE, one):
            value = within_us(work) * float(np.exp(random.normal(0, noise)))
            found.setdefault(work, {})[one.key] = value
    return found


def network_ms(architecture: Architecture) -> float:
    return 1e-3 * sum(map(within_us, workloads(SPACE, architecture)))


def predictor(context: KernelContext) -> LatencyPredictor:
    return LatencyPredictor.of_kernels(SPACE, TABLE, context=context).corrected(
        [(one, network_ms(one)) for one in TRAIN]
    )


def factors(context: KernelContext, works: Sequence[Workload]) -> np.ndarray:
    return context.factors(works, np.array([TABLE[one] for one in works]))


def test_without_readings_kernels_take_what_they_take_alone() -> None:
    for context in (KernelContext(), KernelContext.fit({}, TABLE)):
        assert factors(context, KERNELS) == pytest.approx(1)


def test_what_was_read_off_many_networks_is_believed() -> None:
    found = readings(TRAIN)
    context = KernelContext.fit(found, TABLE)
    often = [work for work, networks in found.items() if len(networks) >= 5]
    assert factors(context, often) == pytest.approx([FACTORS[one] for one in often], rel=0.02)


def test_what_nobody_read_off_is_estimated_by_the_shape() -> None:
    def slower(work: Workload) -> float:
        return 1.3 if work.weight_count > 2000 else 1.0

    some, others = KERNELS[::2], KERNELS[1::2]
    found = {one: {"a": TABLE[one] * slower(one)} for one in some}
    context = KernelContext.fit(found, TABLE)
    truth = np.array([slower(one) for one in others])
    estimated = np.abs(np.log(factors(context, others) / truth)).mean()
    assert estimated < 0.5 * np.abs(np.log(truth)).mean()


def test_single_noisy_readings_count_less_than_many() -> None:
    random = np.random.default_rng(2)
    plain = dict.fromkeys(KERNELS, 1.0)
    found = {
        work: {
            str(n): TABLE[work] * float(np.exp(random.normal(0, 0.2)))
            for n in range(1 if number % 2 else 20)
        }
        for number, work in enumerate(plain)
    }
    context = KernelContext.fit(found, TABLE)
    raw = [np.log(networks["0"] / TABLE[work]) for work, networks in found.items()][1::2]
    kept = np.log(factors(context, KERNELS[1::2]))
    assert np.abs(kept).mean() < 0.5 * np.abs(raw).mean()


def test_the_readings_improve_predictions_of_fresh_networks() -> None:
    truth = [network_ms(one) for one in TEST]
    alone = mape(predictor(KernelContext()).predict(TEST).latency_ms, truth)
    within = mape(
        predictor(KernelContext.fit(readings(TRAIN), TABLE)).predict(TEST).latency_ms, truth
    )
    assert within < 0.5 * alone


def test_a_network_is_held_out_with_its_own_readings() -> None:
    network = TRAIN[0]
    honest = readings(TRAIN, noise=0.02)
    absurd = {
        work: {key: us * (9 if key == network.key else 1) for key, us in networks.items()}
        for work, networks in honest.items()
    }
    left_out = [
        KernelContext.fit(found, TABLE).without({network.key}, TABLE).readings
        for found in (honest, absurd)
    ]
    assert left_out[0] == left_out[1]
    assert not any(network.key in networks for networks in left_out[0].values())
    sums = []
    for found in (honest, absurd):
        context = replace(
            KernelContext.fit(honest, TABLE), readings=KernelContext.fit(found, TABLE).readings
        )
        others = [(one, network_ms(one)) for one in TRAIN]
        fitted = LatencyPredictor.of_kernels(SPACE, TABLE, context=context)
        sums.append(fitted.held_out_ms(others)[network])
    assert sums[0] == pytest.approx(sums[1])


def test_intervals_cover_fresh_networks_where_readings_are_noisy() -> None:
    context = KernelContext.fit(readings(TRAIN, noise=0.1), TABLE)
    found = predictor(context).predict(TEST)
    truth = np.array([network_ms(one) for one in TEST])
    assert ((found.low_ms <= truth) & (truth <= found.high_ms)).mean() > 0.8


def test_a_saved_predictor_knows_what_networks_make_of_kernels() -> None:
    fitted = predictor(KernelContext.fit(readings(TRAIN[:20], noise=0.02), TABLE))
    again = LatencyPredictor.from_bytes(fitted.to_bytes())
    assert again.predict(TEST).latency_ms == pytest.approx(fitted.predict(TEST).latency_ms)
    assert again.to_bytes() == fitted.to_bytes()
    assert again.table.code_hash == CODE


def record(work: Workload, key: str, us: float, schedule: str = TEXT) -> Measurement:
    return replace(
        kernel_record("board", work, schedule, [us * 1e3] * 3, evidence_hash()),
        subject=Subject.IN_NETWORK,
        space=space_label(TINY),
        architecture=key,
    )


def test_readings_are_those_of_the_tuned_schedules(store: Store) -> None:
    store.add_device(replace(store.device("local"), name="board"))
    first, second = space_workloads(TINY)[:2]
    other = Schedule(vectors=Schedule().vectors + 1).to_text()
    stale = replace(record(first, "a", 50.0))
    stale = replace(stale, provenance=replace(stale.provenance, code_hash="older"))
    store.add_measurements(
        [
            record(first, "a", 1.0),
            record(first, "a", 3.0),
            record(first, "b", 5.0),
            record(first, "c", 70.0, other),
            record(second, "a", 9.0),
            stale,
        ]
    )
    kernels: Mapping[Workload, TunedKernel] = {first: TunedKernel(Schedule(), 1.0, 30, (1.0,))}
    assert context_readings(store, "board", kernels) == {first: {"a": 2.0, "b": 5.0}}


def test_a_predictor_from_the_store_sums_what_kernels_take_within_networks(store: Store) -> None:
    device = replace(store.device("local"), name="board")
    store.add_device(device)
    works = space_workloads(TINY)
    networks = spread_sample(TINY, 6, np.random.default_rng(0))
    alone = [
        kernel_record("board", one, TEXT, [1e3 * kernel_us(one)] * 30, evidence_hash())
        for one in works
    ]
    within = [
        record(work, one.key, 1.2 * kernel_us(work))
        for one in networks
        for work in workloads(TINY, one)
    ]
    store.add_measurements([*alone, *within])
    fitted = fit_predictor(TINY, device, store)
    expected = 1.2e-3 * sum(map(kernel_us, workloads(TINY, networks[0])))
    assert fitted.kernel_sums_ms(networks[:1])[0] == pytest.approx(expected, rel=1e-3)
    assert sum(one.latency_us for one in fitted.kernels(networks[0])) == pytest.approx(
        1e3 * expected, rel=1e-3
    )
