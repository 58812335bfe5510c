"""Kernels measured where they run: what their records tell, and what is made of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bignas.compile.child_graph import graph_with_random_weights
from bignas.compile.fallback import FallbackKernel
from bignas.compile.graph import FallbackCall, KernelCall
from bignas.compile.schedule import Schedule
from bignas.device_db.device import Device
from bignas.device_db.measurement import Measurement, Subject
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.in_network import ProbedNetwork, in_network_records
from bignas.latency.in_network_readings import in_network_readings
from bignas.latency.in_network_table import in_network_table
from bignas.latency.jobs import TimingResult
from bignas.latency.profile import space_workloads
from bignas.latency.recording import Recorder, space_label
from bignas.latency.tuned import TunedKernel
from tests.latency.tiny import QUIET, TINY, kernel_record

PLAIN = Schedule()


def record(
    work: Workload, key: str, us: float, schedule: Schedule = PLAIN, process: int = 0
) -> Measurement:
    """Return the record of a call in a network, as one process measured it."""
    return replace(
        kernel_record("board", work, schedule.to_text(), [us * 1e3] * 3, evidence_hash()),
        subject=Subject.IN_NETWORK,
        space=space_label(TINY),
        architecture=key,
        created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=process),
    )


def tuned(*works: Workload) -> dict[Workload, TunedKernel]:
    return {one: TunedKernel(PLAIN, 1.0, 30, (1.0,)) for one in works}


def filled(store: Store, *records: Measurement) -> None:
    store.add_device(replace(store.device("local"), name="board"))
    store.add_measurements(records)


def test_calls_and_processes_are_averaged(store: Store) -> None:
    work = space_workloads(TINY)[0]
    filled(
        store,
        *(record(work, "a", us, process=1) for us in (1.0, 3.0)),  # two calls
        *(record(work, "a", us, process=2) for us in (3.0, 5.0)),
        *(record(work, "a", us, process=3) for us in (90.0, 99.0)),  # disturbed
    )
    assert in_network_table(store, "board", tuned(work)).latencies_us([work] * 2) == [4.0] * 2


def test_calls_add_up_to_their_network_although_each_run_disturbs_another(store: Store) -> None:
    """Each of five kernels has a calm median, and no run of the network is calm."""
    works = space_workloads(TINY)[:5]
    times_us = 10.0 + 5.0 * np.eye(len(works))
    times_us = np.hstack([times_us] * 4 + [np.full((len(works), 4), 99.0)])  # and four long runs
    filled(
        store,
        *(
            replace(record(work, "a", 1.0), samples_ns=tuple(row * 1e3))
            for work, row in zip(works, times_us, strict=True)
        ),
    )
    found = in_network_table(store, "board", tuned(*works)).latencies_us(works)
    assert found == pytest.approx([11.0] * len(works))


def test_calls_of_different_numbers_of_samples_have_their_medians(store: Store) -> None:
    first, second = space_workloads(TINY)[:2]
    short = replace(record(second, "a", 1.0), samples_ns=(2e3, 3e3))
    filled(store, record(first, "a", 5.0), short)
    table = in_network_table(store, "board", tuned(first, second))
    assert table.latencies_us([first, second]) == [5.0, 2.5]


def test_only_tuned_schedules_and_the_present_code_count(store: Store) -> None:
    first, second = space_workloads(TINY)[:2]
    other = replace(PLAIN, vectors=PLAIN.vectors + 1)
    stale = record(first, "a", 50.0)
    stale = replace(stale, provenance=replace(stale.provenance, code_hash="older"))
    filled(
        store,
        record(first, "a", 2.0),
        record(first, "c", 70.0, other),
        record(second, "a", 9.0),
        stale,
    )
    table = in_network_table(store, "board", tuned(first))
    assert table.latencies_us([first, second]) == [2.0, None]


def test_networks_of_similar_size_tell_most(store: Store) -> None:
    with_weights = [one for one in space_workloads(TINY) if one.weight_count]
    small = min(with_weights, key=lambda one: one.weight_count)
    big = max(with_weights, key=lambda one: one.weight_count)
    filled(
        store,
        record(small, "few weights", 1.0),
        record(small, "many weights", 3.0),
        *(record(big, "many weights", 9.0) for _ in range(4)),
    )
    table = in_network_table(store, "board", tuned(small, big))
    assert table.latencies_us([small])[0] == pytest.approx(1.0, abs=0.01)
    assert table.latencies_us([small, *[big] * 4])[0] == pytest.approx(3.0, abs=0.01)
    assert table.latencies_us([small, *[big] * 99])[0] == pytest.approx(3.0, abs=0.01)
    between = [table.latencies_us([small, *[big] * n])[0] or 0.0 for n in range(5)]
    assert between == sorted(between)


def test_readings_tell_what_a_network_takes_and_reads(store: Store) -> None:
    first, second = [one for one in space_workloads(TINY) if one.weight_count][:2]
    filled(
        store,
        *(record(first, "a", us, process=1) for us in (1.0, 3.0)),
        record(second, "a", 4.0, replace(PLAIN, vectors=PLAIN.vectors + 1), process=1),
        *(record(first, "a", us, process=2) for us in (2.0, 4.0)),
        record(second, "a", 6.0, replace(PLAIN, vectors=PLAIN.vectors + 1), process=2),
    )
    found = in_network_readings(store, "board", tuned(first, second))
    (network,) = found.networks
    assert network.network == (space_label(TINY), "a")
    assert network.total_us == pytest.approx(10.0)  # 8 and 12
    assert network.latencies_us == {first: pytest.approx(2.5)}
    assert network.read_bytes == 2 * found.read_bytes[first] + found.read_bytes[second]
    scaled = found.scaled_to({network.network: 5.0, (space_label(TINY), "b"): 1.0}).networks[0]
    assert scaled.total_us == pytest.approx(5.0)
    assert scaled.latencies_us == {first: pytest.approx(1.25)}
    assert not found.without({network.network}).networks
    assert found.without(set()).networks == (network,)


def probed(index: int = 0) -> ProbedNetwork:
    graph = graph_with_random_weights(TINY, TINY.smallest(), index)
    return ProbedNetwork("somewhere", f"network {index}", graph)


def test_fallback_kernels_have_no_record(device: Device) -> None:
    network = probed()
    first, *others = network.graph.calls
    assert isinstance(first, KernelCall)
    kernel = FallbackKernel("softmax", 1, (1, first.output_floats), (), "text")
    fallback = FallbackCall(kernel, (first.input,), first.output)
    graph = replace(network.graph, calls=(fallback, *others))
    samples = tuple((float(number + 1),) for number in range(len(graph.calls)))
    schedules = dict.fromkeys(graph.workloads, Schedule())
    records = in_network_records(
        replace(network, graph=graph),
        schedules,
        TimingResult((9.0,), steps_ns=samples),
        QUIET,
        Recorder(device.name),
    )
    assert [one.samples_ns for one in records] == list(samples[1:])


def test_a_network_that_cannot_be_measured_has_no_records(device: Device) -> None:
    network = probed()
    schedules = dict.fromkeys(network.graph.workloads, Schedule())
    failed = TimingResult((), "stopped with status 11")
    assert in_network_records(network, schedules, failed, QUIET, Recorder(device.name)) == []
