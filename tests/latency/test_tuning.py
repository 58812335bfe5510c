"""The kernel table: every candidate leaves a record, the longest measurement counts."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import Schedule, candidates
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError, ToolchainError
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.device_db.workload import Activation, Operator, Workload
from bignas.latency import tuning
from bignas.latency.evidence import evidence_hash
from bignas.latency.metrics import DISTURBED
from bignas.latency.tuned import (
    FINAL_SAMPLES,
    TRIES,
    best_kernels,
    failed_kernels,
    kernel_table,
    schedules_of,
    tuned_kernels,
)
from bignas.latency.tuning import FINAL, TRIAL, Tuner, ensure_tuned, tune_missing
from tests.latency.tiny import kernel_record

GOOD = (
    Workload(Operator.POINTWISE, 4, 4, 16, 24, activation=Activation.RELU),
    Workload(Operator.DEPTHWISE, 4, 4, 16, 16, 3, 1, 1),
    Workload(Operator.GLOBAL_POOL, 4, 4, 16, 16),
)
UNBUILDABLE = Workload(Operator.POINTWISE, 4, 4, 16, 24, stride=2)  # no kernel is written for it


def test_candidates_are_tried_and_winners_measured_again(
    device: Device, store: Store, cache: ObjectCache
) -> None:
    with Tuner(device, store, cache) as tuner:
        assert tuner.tune(GOOD) >= 0
    records = store.kernel_measurements(device.name, code_hash=evidence_hash())
    assert all(one.ok for one in records)
    kernels = tuned_kernels(store, device.name)
    assert set(kernels) == set(GOOD)
    for workload in GOOD:
        tried = [one for one in records if one.workload == workload]
        lengths = [len(one.samples_ns) for one in tried]
        assert sum(length >= FINAL.rounds for length in lengths) == 1
        assert lengths.count(TRIAL.rounds) == len(candidates(workload, device.target))
        assert {one.schedule for one in tried} == {
            schedule.to_text() for schedule in candidates(workload, device.target)
        }
        (final,) = [one for one in tried if len(one.samples_ns) >= FINAL.rounds]
        assert kernels[workload].samples == FINAL.rounds
        assert kernels[workload].schedule.to_text() == final.schedule
        assert kernels[workload].latency_us == pytest.approx(final.p50_ns / 1e3)
    table = kernel_table(store, device.name)
    assert dict(table) == {one: entry.latency_us for one, entry in kernels.items()}
    assert (table.device_name, table.code_hash) == (device.name, evidence_hash())
    assert schedules_of(kernels) == {one: entry.schedule for one, entry in kernels.items()}


@pytest.mark.parametrize("workloads", [(UNBUILDABLE,), (GOOD[0], UNBUILDABLE)])
def test_a_failed_build_is_a_failed_record(
    workloads: Sequence[Workload], device: Device, store: Store, cache: ObjectCache
) -> None:
    with Tuner(device, store, cache) as tuner:
        tuner.tune(workloads)
    records = store.kernel_measurements(device.name)
    failed = [one for one in records if not one.ok]
    assert {one.workload for one in failed} == {UNBUILDABLE}
    assert len(failed) == len(candidates(UNBUILDABLE, device.target))
    assert all("no kernel for" in str(one.error) for one in failed)
    assert set(tuned_kernels(store, device.name)) == set(workloads) - {UNBUILDABLE}
    assert store.check_integrity() == []


def test_a_kernel_that_cannot_be_had_is_named(
    device: Device, store: Store, cache: ObjectCache
) -> None:
    with pytest.raises(MeasurementError, match=UNBUILDABLE.key):
        ensure_tuned([GOOD[0], UNBUILDABLE], device, store, cache)
    assert GOOD[0] in tuned_kernels(store, device.name)


def test_what_failed_time_and_again_is_not_tried_again(
    device: Device, store: Store, cache: ObjectCache
) -> None:
    counts = []
    for _ in range(TRIES + 2):
        with pytest.raises(MeasurementError, match=UNBUILDABLE.key):
            ensure_tuned([UNBUILDABLE], device, store, cache)
        counts.append(len(store.kernel_measurements(device.name)))
    assert len(set(counts)) == TRIES
    with pytest.raises(MeasurementError, match="measured: no kernel for"):
        ensure_tuned([UNBUILDABLE], device, store, cache)
    assert set(failed_kernels(store, device.name)) == {UNBUILDABLE}


def test_failures_of_other_code_and_of_a_kernel_that_worked_once_are_no_obstacle(
    device: Device, store: Store
) -> None:
    def failures(workload: Workload, code: str) -> list[Measurement]:
        text = Schedule().to_text()
        record = kernel_record(device.name, workload, text, [], code, "crashed")
        return [replace(record, session=f"session {number}") for number in range(TRIES)]

    succeeded = kernel_record(device.name, GOOD[1], Schedule(2).to_text(), [9.0], evidence_hash())
    store.add_measurements(failures(GOOD[0], "another"))
    store.add_measurements([*failures(GOOD[1], evidence_hash()), succeeded])
    assert failed_kernels(store, device.name) == {}
    store.add_measurements(failures(GOOD[2], evidence_hash())[:1])
    assert failed_kernels(store, device.name) == {}
    store.add_measurements(failures(GOOD[2], evidence_hash())[1:])
    assert failed_kernels(store, device.name) == {GOOD[2]: "crashed"}


@pytest.mark.slow
def test_a_script_that_its_workers_would_run_again_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from bignas.compile.objects import ObjectCache\n"
        "from bignas.device_db.workload import Operator, Workload\n"
        "from bignas.device_db.store import Store\n"
        "from bignas.latency.tuning import Tuner\n"
        "many = [Workload(Operator.SCALE, size, size, 8, 8) for size in range(1, 30)]\n"
        "with Store.open() as store:\n"
        "    device = store.device('local')\n"
        f"    cache = ObjectCache(device.target, Path({str(tmp_path)!r}))\n"
        "    with Tuner(device, store, cache) as tuner:\n"
        "        tuner.tune(many)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert f'put what {script} does under `if __name__ == "__main__":`' in last


def test_a_missing_compiler_is_an_error_and_leaves_no_records(
    device: Device, store: Store, cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    with Tuner(device, store, cache) as tuner, pytest.raises(ToolchainError, match="gcc"):
        tuner.tune(GOOD[:1])
    assert store.kernel_measurements(device.name) == []


def test_nothing_is_measured_again(device: Device, store: Store, cache: ObjectCache) -> None:
    first = ensure_tuned(GOOD[:2], device, store, cache)
    before = store.kernel_measurements(device.name)
    assert ensure_tuned(GOOD[:2], device, store, cache) == first
    assert store.kernel_measurements(device.name) == before
    extended = ensure_tuned([*GOOD, *GOOD], device, store, cache)
    assert {one: extended[one] for one in first} == first
    added = store.kernel_measurements(device.name)[len(before) :]
    assert {one.workload for one in added} == {GOOD[2]}


def test_tuning_goes_batch_by_batch_and_stops_when_told(
    device: Device, store: Store, cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "BATCH", 1)
    seen: list[tuple[int, int]] = []

    def stop_after_two(done: int, total: int, rejected: int) -> bool:
        seen.append((done, total))
        # what is reported is in the store already
        assert set(tuned_kernels(store, device.name)) == {GOOD[0], *GOOD[1 : done + 1]}
        return done < 2

    ensure_tuned(GOOD[:1], device, store, cache)
    more = Workload(Operator.SCALE, 2, 2, 8, 8)
    tune_missing([*GOOD, more], device, store, cache, {GOOD[0]}, stop_after_two)
    assert seen == [(1, 3), (2, 3)]
    assert set(tuned_kernels(store, device.name)) == set(GOOD)


@pytest.mark.slow
def test_worker_processes_build_the_same_kernels(
    device: Device, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    many = [Workload(Operator.SCALE, size, size, 8, 8) for size in range(1, 20)]
    many += [Workload(Operator.POINTWISE, 4, 4, 8, size) for size in range(1, 12)]
    own = ObjectCache(device.target, tmp_path_factory.mktemp("own"))
    with Tuner(device, store, own) as tuner:
        tuner.tune([*many, UNBUILDABLE])
    assert set(tuned_kernels(store, device.name)) == set(many)
    other = ObjectCache(device.target, tmp_path_factory.mktemp("other"))
    for workload in many[::7]:
        schedule = candidates(workload, device.target)[0]
        assert (
            own.path(workload, schedule).read_bytes() == other.path(workload, schedule).read_bytes()
        )


def test_a_longer_measurement_replaces_a_shorter_one() -> None:
    def record(tile: int, samples: int, nanoseconds: float) -> object:
        return kernel_record(
            "d", GOOD[0], Schedule(tile).to_text(), [nanoseconds] * samples, evidence_hash()
        )

    quick_and_lucky = record(1, 10, 100.0)
    long = record(2, 30, 150.0)
    longer_again = record(2, 30, 145.0)
    disturbed = record(2, 30, 200.0)
    other_long = record(4, 30, 149.0)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):
        records = [quick_and_lucky, long, longer_again, other_long, disturbed]
        best = best_kernels(records[index] for index in order)[GOOD[0]]  # type: ignore[misc]
        assert best.latency_us == pytest.approx(0.1475)  # of equally long ones, those that agree
        assert best.samples == 30
        assert len(best.medians_us) == 3


@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(1, 4),
            st.sampled_from([10, 30]),
            st.floats(1.0, 1e6),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_the_best_kernel_is_one_that_was_measured_and_measured_longest(
    entries: list[tuple[int, int, int, float, bool]],
) -> None:
    records = [
        kernel_record(
            "d", GOOD[index], Schedule(tile).to_text(), [] if failed else [latency] * count,
            evidence_hash(), "crashed" if failed else None,
        )
        for index, tile, count, latency, failed in entries
    ]  # fmt: skip
    best = best_kernels(records)
    succeeded = [one for one in records if one.ok]
    assert set(best) == {one.workload for one in succeeded}
    for workload, kernel in best.items():
        own = [one for one in succeeded if one.workload == workload]
        most = max(len(one.samples_ns) for one in own)
        assert kernel.samples == min(most, FINAL_SAMPLES)
        medians_us = [
            one.p50_ns / 1e3
            for one in own
            if one.schedule == kernel.schedule.to_text() and len(one.samples_ns) >= kernel.samples
        ]
        assert len(medians_us) == len(kernel.medians_us)
        assert kernel.latency_us / min(medians_us) * (1 + 1e-9) >= 1
        assert any(abs(kernel.latency_us / one - 1) <= DISTURBED for one in medians_us)


def test_measurements_of_other_code_are_stale(device: Device, store: Store) -> None:
    text = Schedule().to_text()
    store.add_measurements(
        [
            kernel_record(device.name, GOOD[0], text, [50.0] * 90, "another"),
            kernel_record(device.name, GOOD[1], text, [50.0] * 90, "another"),
            kernel_record(device.name, GOOD[1], text, [80.0] * 30, evidence_hash()),
        ]
    )
    kernels = tuned_kernels(store, device.name)
    assert set(kernels) == {GOOD[1]}
    assert kernels[GOOD[1]].latency_us == pytest.approx(0.08)
    assert GOOD[0] not in kernel_table(store, device.name)
