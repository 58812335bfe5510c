"""What profiling chooses: complete in the end, good early, the same after interruptions."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bignas.compile.objects import ObjectCache
from bignas.compile.workload import workloads
from bignas.device_db.database import URL_VARIABLE
from bignas.device_db.device import Device
from bignas.device_db.errors import InputError, MeasurementError
from bignas.device_db.files import cache_folder, locked
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.held_out import FEWEST_NETWORKS, held_out_error
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import (
    CHECKS,
    LOCK,
    ProfileProgress,
    ProfileSummary,
    StopReason,
    profile_space,
    space_workloads,
)
from bignas.latency.profile_plan import BATCH, SUBNET_BATCH, ProfilePlanner
from bignas.latency.subnets import measured_subnets
from bignas.latency.tuned import TRIES
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from tests.latency.fake_bench import FakeTuner, fake_subnets
from tests.latency.synthetic import draw, kernel_us, make_space
from tests.latency.tiny import TINY

ROOT = Path(__file__).parents[2]
SPACE = make_space()
KERNELS = space_workloads(SPACE)
TINY_KERNELS = space_workloads(TINY)
SUBNETS = 20
SMALL_BATCH = 4


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bignas.latency.profile.Tuner", FakeTuner)
    monkeypatch.setattr("bignas.latency.profile.measure_subnets", fake_subnets)


@pytest.fixture
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny space has few kernels; small models are enough for them."""
    monkeypatch.setattr("bignas.latency.regression.TREE_ROUNDS", 3)
    for name in ("BATCH", "FIRST_BATCH"):
        monkeypatch.setattr(f"bignas.latency.profile_plan.{name}", SMALL_BATCH)
    monkeypatch.setattr("bignas.latency.profile.FIRST_KERNELS", 3 * SMALL_BATCH)


def profiled(
    device: Device, store: Store, target_error: float | None = None, minutes: float = 5.0
) -> ProfileSummary:
    cache = ObjectCache(device.target)
    return profile_space(
        TINY, device, store, cache, minutes, subnets=SUBNETS, target_error=target_error
    )


def contents(store: Store) -> list[tuple[Workload | str | None, str | None]]:
    """What was measured, in the order of adding."""
    kernels = [(one.workload, one.error) for one in store.kernel_measurements("local")]
    networks = [(one.architecture, one.error) for one in store.network_measurements("local")]
    return [*kernels, *networks]


# --- plans ----------------------------------------------------------------------------------------


def test_plans_hold_everything_once() -> None:
    planner = ProfilePlanner(SPACE, KERNELS, SUBNETS)
    table: dict[Workload, float] = {}
    subnets: list[Architecture] = []
    while batch := planner.next_batch(table, set(subnets)):
        assert not table.keys() & set(batch.kernels)
        assert not set(subnets) & set(batch.subnets)
        assert table.keys() >= {one for each in batch.subnets for one in workloads(SPACE, each)}
        table |= {one: kernel_us(one) for one in batch.kernels}
        subnets += batch.subnets
    assert table.keys() == set(KERNELS)
    assert len(subnets) == SUBNETS


def test_hopeless_kernels_and_their_subnets_are_left_out() -> None:
    planner = ProfilePlanner(SPACE, KERNELS, SUBNETS)
    bad = workloads(SPACE, SPACE.biggest())[3]
    table = {one: kernel_us(one) for one in KERNELS if one != bad}
    batch = planner.next_batch(table, set(), {bad})
    first = planner.first_batch(table, set(), SUBNET_BATCH, {bad})
    for one in (batch, first):
        assert one.kernels == ()
        assert one.subnets
        for architecture in one.subnets:
            assert bad not in workloads(SPACE, architecture)


def test_the_first_subnets_share_kernels() -> None:
    planner = ProfilePlanner(SPACE, KERNELS, SUBNETS)
    table: dict[Workload, float] = {}
    while (batch := planner.first_batch(table, set(), 5)).kernels:
        table |= {one: kernel_us(one) for one in batch.kernels}
    cheap, needed = batch.subnets, len(table)
    random = np.random.default_rng(0)
    for _ in range(20):
        picked = random.choice(len(planner.candidates), 5, replace=False)
        others = [planner.candidates[index] for index in picked]
        assert needed <= len({one for each in others for one in workloads(SPACE, each)})
    assert len(set(cheap)) == 5


@pytest.mark.parametrize("count", [24, 48])
def test_planned_kernels_predict_better_than_random_ones(count: int) -> None:
    test = draw(SPACE, 200, 77)
    truth = [sum(map(kernel_us, workloads(SPACE, one))) for one in test]

    def error(kernels: list[Workload]) -> float:
        table = KernelTable({one: kernel_us(one) for one in kernels}, "made-up", "code")
        return mape(LatencyPredictor.of_kernels(SPACE, table).kernel_sums_ms(test) * 1e3, truth)

    planner = ProfilePlanner(SPACE, KERNELS, SUBNETS)
    chosen: list[Workload] = []
    while len(chosen) < count:
        table = {one: kernel_us(one) for one in chosen}
        chosen += planner.next_batch(table, set(planner.candidates)).kernels
    random = np.random.default_rng(0)
    others = [
        error([KERNELS[index] for index in random.choice(len(KERNELS), count, replace=False)])
        for _ in range(5)
    ]
    assert error(chosen[:count]) < np.median(others)


def test_batches_grow_with_what_is_known() -> None:
    planner = ProfilePlanner(SPACE, KERNELS, SUBNETS)
    done = set(planner.candidates)
    sizes = [
        len(planner.next_batch({one: kernel_us(one) for one in KERNELS[:count]}, done).kernels)
        for count in (0, 60, 120, 200)
    ]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1] <= BATCH


# --- the error ------------------------------------------------------------------------------------


def erratic_us() -> dict[Workload, float]:
    """Latencies that no model can guess."""
    random = np.random.default_rng(11)
    return {one: kernel_us(one) * float(np.exp(random.normal(0, 0.5))) for one in KERNELS}


def erratic(count: int, seed: int) -> list[tuple[Architecture, float]]:
    """Networks that take what their kernels take, but for 1% of noise."""
    latency_us, random = erratic_us(), np.random.default_rng(seed)
    return [
        (
            one,
            sum(latency_us[work] for work in workloads(SPACE, one)) * random.normal(1, 0.01) / 1e3,
        )
        for one in dict.fromkeys(draw(SPACE, count, seed))
    ]


def test_the_held_out_error_is_that_of_fresh_networks() -> None:
    """All kernels of the measured networks are measured, fresh ones lack many."""
    networks = erratic(10, 5)
    own = {work for one, _ in networks for work in workloads(SPACE, one)}
    table = KernelTable({one: us for one, us in erratic_us().items() if one in own}, "it", "code")
    planner = ProfilePlanner(SPACE, KERNELS, SUBNETS)
    weights, unmeasured = planner.weights(table), float(planner.estimated_shares(table).mean())
    fresh = erratic(300, 77)
    predictor = LatencyPredictor.fit(SPACE, table, networks)
    predicted_ms = predictor.predict([one for one, _ in fresh]).latency_ms
    true = mape(predicted_ms, [latency_ms for _, latency_ms in fresh])
    estimate = held_out_error(SPACE, table, networks, weights, unmeasured)
    blind = held_out_error(SPACE, table, networks, weights, 0.0)
    assert unmeasured > 0.1
    assert estimate is not None
    assert blind is not None
    assert true / 2 < estimate < 2 * true
    assert blind < true / 2


def test_the_share_of_unmeasured_kernels_is_that_of_random_networks() -> None:
    planner = ProfilePlanner(SPACE, KERNELS, SUBNETS)
    shares = [
        float(planner.estimated_shares({one: kernel_us(one) for one in KERNELS[:count]}).mean())
        for count in (0, len(KERNELS) // 2, len(KERNELS))
    ]
    assert shares[0] == 1
    assert 0 < shares[1] < 1
    assert shares[2] == 0


def test_few_networks_say_nothing_about_the_error() -> None:
    table = KernelTable({one: kernel_us(one) for one in KERNELS}, "made-up", "code")
    assert held_out_error(SPACE, table, erratic(FEWEST_NETWORKS - 1, 5), {}, 0.0) is None
    assert held_out_error(SPACE, table, erratic(FEWEST_NETWORKS, 5), {}, 0.0) is not None


# --- profiling ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_small_batches")
def test_with_time_enough_everything_is_measured(device: Device, store: Store) -> None:
    summary = profiled(device, store)
    assert summary.stopped is StopReason.COMPLETE
    assert summary.kernels == summary.kernels_of_space == len(TINY_KERNELS)
    assert summary.subnets == SUBNETS
    assert summary.rejected >= len(TINY_KERNELS) / SMALL_BATCH
    assert summary.held_out_error is not None
    assert set(Counter(contents(store)).values()) == {CHECKS}


@pytest.mark.usefixtures("_small_batches")
def test_what_disagrees_is_measured_until_two_agree(
    device: Device, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose figures are a third too low, as one was seen to be, is outvoted."""
    seen: Counter[Architecture] = Counter()

    def first_too_fast(
        space: SearchSpace, architectures: Sequence[Architecture], *others: Any, probed: bool
    ) -> list[Measurement]:
        seen.update(architectures)
        whole = [
            replace(one, samples_ns=tuple(value * 0.7 for value in one.samples_ns))
            if seen[architecture] == 1
            else one
            for architecture, one in zip(
                architectures, fake_subnets(space, architectures, *others), strict=True
            )
        ]
        return [
            *whole,
            *fake_subnets(space, architectures, *others, probed=probed)[len(whole) :],
        ]

    monkeypatch.setattr("bignas.latency.profile.measure_subnets", first_too_fast)
    assert profiled(device, store).stopped is StopReason.COMPLETE
    assert set(seen.values()) == {CHECKS + 1}
    for architecture, latency_ms in measured_subnets(store, "local", TINY, evidence_hash()):
        expected_us = 1.04 * sum(map(kernel_us, workloads(TINY, architecture)))
        assert latency_ms * 1e3 == pytest.approx(expected_us)


@pytest.mark.usefixtures("_small_batches")
def test_a_target_error_ends_profiling_early(device: Device, store: Store) -> None:
    steps: list[ProfileProgress] = []
    cache = ObjectCache(device.target)
    summary = profile_space(TINY, device, store, cache, 5.0, steps.append, SUBNETS, 0.05)
    assert summary.stopped is StopReason.TARGET
    assert summary.held_out_error is not None
    assert summary.held_out_error <= 0.05
    assert summary.kernels < summary.kernels_of_space
    assert all(0 < one.done <= one.total for one in steps)
    assert steps[-1].rejected == summary.rejected
    again = profiled(device, store, target_error=0.05)
    assert again.stopped is StopReason.TARGET
    assert (again.kernels, again.subnets) == (summary.kernels, summary.subnets)


@pytest.mark.parametrize(("limit", "target_error"), [(3, None), (1, 0.02)])
@pytest.mark.usefixtures("_small_batches")
def test_interruptions_change_nothing(
    device: Device, tmp_path: Path, limit: int, target_error: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = []
    for name, batches in (("whole", None), ("parts", limit)):
        monkeypatch.setattr(FakeTuner, "limit", batches)
        with Store.open(f"sqlite:///{tmp_path / name}.sqlite") as other:
            other.device(device.name)
            for _ in range(200):
                try:
                    summary = profiled(device, other, target_error)
                except KeyboardInterrupt:
                    continue
                break
            expected = StopReason.COMPLETE if target_error is None else StopReason.TARGET
            assert summary.stopped is expected
            found.append(contents(other))
    assert found[0] == found[1]


@pytest.mark.usefixtures("_small_batches")
def test_kernels_that_fail_do_not_stop_the_rest(
    device: Device, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = frozenset(workloads(TINY, TINY.biggest())[3:6:2])
    monkeypatch.setattr(FakeTuner, "failing", bad)
    summary = profiled(device, store)
    assert summary.stopped is StopReason.COMPLETE
    assert summary.kernels == len(TINY_KERNELS) - len(bad)
    for _ in range(3):
        profiled(device, store)
    failures = [one for one in store.kernel_measurements(device.name) if one.error]
    assert Counter(one.workload for one in failures) == dict.fromkeys(bad, TRIES)


@pytest.mark.usefixtures("_small_batches")
def test_a_space_of_which_no_kernel_works_is_an_error(
    device: Device, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTuner, "failing", frozenset(TINY_KERNELS))
    with pytest.raises(MeasurementError, match="no subnet of tiny can be measured"):
        profiled(device, store)


@pytest.mark.parametrize("target_error", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.usefixtures("_small_batches")
def test_an_impossible_target_is_refused(device: Device, store: Store, target_error: float) -> None:
    with pytest.raises(InputError, match="target error"):
        profiled(device, store, target_error)


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_impossible_minutes_are_refused(device: Device, store: Store, minutes: float) -> None:
    with pytest.raises(InputError, match="minutes"):
        profiled(device, store, minutes=minutes)


@pytest.mark.usefixtures("_small_batches")
def test_a_profiler_whose_time_passes_while_another_measures_ends(
    device: Device, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bignas.latency.profile.PATIENCE_SECONDS", 0.0)
    profiled(device, store, target_error=0.5)
    before = contents(store)
    with locked(cache_folder() / LOCK, 0.0) as held:
        assert held
        summary = profiled(device, store, minutes=1e-4)
    assert summary.stopped is StopReason.TIME
    assert contents(store) == before


@pytest.mark.slow
def test_profilers_of_one_store_share_the_work(tmp_path: Path) -> None:
    """Several processes begin together; nothing is measured too often, and nothing is left."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH')}"}
    environment[URL_VARIABLE] = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    command = [sys.executable, "-m", "tests.latency.profile_faked"]
    runs = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.close()
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    with Store.open(environment[URL_VARIABLE]) as store:
        assert store.check_integrity() == []
        counts = Counter(contents(store))
        assert set(counts.values()) == {CHECKS}, "something was measured too often"
        assert len(counts) == len(TINY_KERNELS) + SUBNETS
