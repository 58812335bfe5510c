"""Whole subnets: spread over the space, measured as they ship, found again in the store."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import candidates
from bignas.compile.workload import workloads
from bignas.device_db.device import Device
from bignas.device_db.measurement import Environment, Measurement, Subject
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency import subnets
from bignas.latency.evidence import evidence_hash
from bignas.latency.in_network_table import in_network_table
from bignas.latency.jobs import NetworkJob, Report, Settings, TimingResult
from bignas.latency.recording import Recorder, space_label
from bignas.latency.repeatability import Repeatability
from bignas.latency.subnets import (
    architecture_of,
    measure_subnets,
    measured_subnets,
    repeatability,
    spread_sample,
)
from bignas.latency.tuned import TunedKernel
from bignas.supernet.architecture import Architecture
from bignas.supernet.spaces import load_space
from tests.latency.tiny import TINY, kernel_record

QUICK = Settings(rounds=5, sample_us=50.0)


@pytest.mark.parametrize("count", [2, 10, 40])
@pytest.mark.parametrize("seed", range(3))
def test_a_spread_sample_covers_the_space(count: int, seed: int) -> None:
    space = load_space("cifar")
    sample = spread_sample(space, count, np.random.default_rng(seed))
    assert sample == spread_sample(space, count, np.random.default_rng(seed))
    assert len(sample) == count
    assert len(set(sample)) == count
    assert all(space.contains(one) for one in sample)
    macs = sorted(space.macs(one) for one in sample)
    assert macs[0] == space.macs(space.smallest())
    assert macs[-1] == space.macs(space.biggest())
    if count == 40:
        steps = np.diff(np.log(macs))
        assert steps.max() < 0.2 * (np.log(macs[-1]) - np.log(macs[0]))


def test_a_small_space_is_sampled_as_a_whole_at_most() -> None:
    sample = spread_sample(TINY, 200, np.random.default_rng(0))
    assert len(set(sample)) == len(sample) <= TINY.size()


def kernels_of(
    architectures: Sequence[Architecture], device: Device
) -> dict[Workload, TunedKernel]:
    """Return the kernels of architectures as if they had been tuned."""
    return {
        work: TunedKernel(candidates(work, device.target)[0], 1.0, 1, (1.0,))
        for one in architectures
        for work in workloads(TINY, one)
    }


def test_subnets_are_measured_and_found_again(
    device: Device, store: Store, cache: ObjectCache
) -> None:
    architectures = [TINY.smallest(), TINY.biggest()]
    kernels = kernels_of(architectures, device)
    recorder = Recorder(device.name)
    records = measure_subnets(TINY, architectures, kernels, device, cache, recorder, QUICK)
    assert [architecture_of(one) for one in records] == architectures
    for record in records:
        assert record.ok
        assert record.subject is Subject.NETWORK
        assert record.space == space_label(TINY)
        assert record.session == recorder.session
        assert len(record.samples_ns) == QUICK.rounds
    assert records[0].p50_ns < records[1].p50_ns
    store.add_measurements(records)
    found = measured_subnets(store, device.name, TINY, evidence_hash())
    assert found == [(architecture_of(one), one.p50_ns / 1e6) for one in records]
    assert measured_subnets(store, device.name, TINY, "another code") == []
    assert measured_subnets(store, device.name, TINY.with_classes(9), evidence_hash()) == []


def test_each_process_loads_networks_in_an_order_of_its_own(
    device: Device, cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded last is faster; records are of the networks that they name all the same."""
    random = np.random.default_rng(3)
    architectures = list(dict.fromkeys(TINY.sample(random) for _ in range(8)))
    processes = 6
    orders: list[list[str]] = []

    def by_name(_: Device, jobs: Sequence[NetworkJob], *__: object) -> Report:
        names = [one.library.stem for one in jobs]
        orders.append(names)
        results = [TimingResult((1e3 + int(one.removeprefix("subnet")),)) for one in names]
        return Report(tuple(results), 0, 0, Environment(0.0, 0.0, None, 0, (), None))

    monkeypatch.setattr(subnets, "measure_on", by_name)
    kernels = kernels_of(architectures, device)
    records = measure_subnets(
        TINY, architectures, kernels, device, cache, Recorder(device.name), processes=processes
    )
    assert [architecture_of(one) for one in records] == architectures * processes
    assert [one.p50_ns - 1e3 for one in records] == [*range(len(architectures))] * processes
    assert len({tuple(one) for one in orders}) > 1
    assert len({tuple(sorted(one)) for one in orders}) == 1


def test_kernels_are_measured_where_they_run(
    device: Device, store: Store, cache: ObjectCache
) -> None:
    architectures = [TINY.smallest(), TINY.biggest()]
    kernels = kernels_of(architectures, device)
    recorder = Recorder(device.name)
    records = measure_subnets(
        TINY, architectures, kernels, device, cache, recorder, QUICK, probed=True
    )
    assert [one.subject for one in records[:2]] == [Subject.NETWORK] * 2
    within = records[2:]
    assert [one.workload for one in within] == [
        work for one in architectures for work in workloads(TINY, one)
    ]
    for one in within:
        assert one.subject is Subject.IN_NETWORK
        assert one.space == space_label(TINY)
        assert one.workload is not None
        assert one.schedule == kernels[one.workload].schedule.to_text()
        assert len(one.samples_ns) == QUICK.rounds
    store.add_measurements(records)
    table = in_network_table(store, device.name, kernels)
    for architecture in architectures:
        assert None not in table.latencies_us(workloads(TINY, architecture))


def record(architecture: Architecture, latency_ms: float, minutes: float) -> Measurement:
    """A subnet as if it had been measured so many minutes after the others."""
    return replace(
        kernel_record("board", workloads(TINY, architecture)[0], "", [latency_ms * 1e6], "code"),
        subject=Subject.NETWORK,
        workload=None,
        schedule=None,
        space=space_label(TINY),
        architecture=architecture.key,
        created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes),
    )


@pytest.mark.parametrize("deviation", [0.0, 0.01, 0.03])
def test_what_differs_minutes_later_is_known(store: Store, deviation: float) -> None:
    store.add_device(replace(store.device("local"), name="board"))
    random = np.random.default_rng(0)
    for architecture in spread_sample(TINY, 60, random):
        for minutes in (0, 5):
            latency_ms = float(np.exp(random.normal(0, deviation)))
            store.add_measurements([record(architecture, latency_ms, minutes)])
    disturbed = record(TINY.smallest(), 3.0, 9)
    store.add_measurements([disturbed])
    found = repeatability(store, "board", TINY, "code")
    assert found.at(1.0) == pytest.approx(deviation, rel=0.35)
    assert repeatability(store, "board", TINY, "another code") == Repeatability()


def test_measurements_at_the_same_time_do_not_tell_what_lasts(store: Store) -> None:
    store.add_device(replace(store.device("local"), name="board"))
    for number, architecture in enumerate(spread_sample(TINY, 40, np.random.default_rng(0))):
        store.add_measurements([record(architecture, 1.0 + number, again) for again in (0, 0.5)])
    assert repeatability(store, "board", TINY, "code") == Repeatability()


def test_a_kernel_without_a_schedule_is_an_error(device: Device, cache: ObjectCache) -> None:
    recorder = Recorder(device.name)
    with pytest.raises(KeyError):
        measure_subnets(TINY, [TINY.smallest()], {}, device, cache, recorder, QUICK)
