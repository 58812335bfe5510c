"""Profiling: the list of kernels is complete, interruptions cost little, predictions are sound."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import Schedule
from bignas.compile.workload import workloads
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError, ToolchainError
from bignas.device_db.store import Store
from bignas.latency import metrics
from bignas.latency.evidence import evidence_hash
from bignas.latency.fitting import fit_predictor
from bignas.latency.profile import (
    CHECKS,
    MOST_CHECKS,
    ProfileProgress,
    StopReason,
    profile_space,
    space_workloads,
)
from bignas.latency.recording import Recorder
from bignas.latency.subnets import measure_subnets, measured_subnets
from bignas.latency.tuned import tuned_kernels
from bignas.latency.tuning import FINAL
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space
from tests.latency.tiny import TINY, kernel_record

ROOT = Path(__file__).parents[2]
OFTEN = set(range(CHECKS, MOST_CHECKS + 1))  # how often each thing may have been measured


@pytest.mark.parametrize("space", [TINY, load_space("cifar"), load_space("digits")])
def test_the_kernels_of_a_space_are_those_of_its_architectures(space: SearchSpace) -> None:
    listed = space_workloads(space)
    assert len(set(listed)) == len(listed)
    random = np.random.default_rng(99)
    sample = [space.smallest(), space.biggest(), *(space.sample(random) for _ in range(300))]
    met = Counter(one for architecture in sample for one in workloads(space, architecture))
    assert set(met) <= set(listed)
    assert listed == space_workloads(space)
    # frequent ones come first
    assert sum(met[one] for one in listed[: len(listed) // 2]) > sum(met.values()) / 2


def test_no_kernel_is_listed_in_vain() -> None:
    listed = set(space_workloads(TINY))
    random = np.random.default_rng(5)
    met = {one for _ in range(3000) for one in workloads(TINY, TINY.sample(random))}
    assert listed == met


def test_a_device_without_measurements_says_what_to_run(device: Device, store: Store) -> None:
    with pytest.raises(MeasurementError, match="bignas profile SPACE --device local"):
        fit_predictor(TINY, device, store)


def test_a_predictor_needs_kernels_only_and_ignores_stale_ones(
    device: Device, store: Store
) -> None:
    text = Schedule().to_text()
    kernels = space_workloads(TINY)
    store.add_measurements(
        kernel_record(device.name, one, text, [1e3 * (index + 1)] * 30, evidence_hash())
        for index, one in enumerate(kernels)
    )
    store.add_measurements(
        kernel_record(device.name, one, text, [1e9] * 90, "another") for one in kernels
    )
    predictor = fit_predictor(TINY, device, store)
    architecture = TINY.smallest()
    expected = sum(kernels.index(one) + 1 for one in workloads(TINY, architecture)) / 1e3
    assert predictor.predict([architecture]).latency_ms[0] == pytest.approx(expected)


def test_no_time_still_gives_kernels_and_subnets_to_start_from(
    device: Device, store: Store, cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bignas.latency.tuning.FEW_BUILDS", 1000)  # starts no processes
    small = SearchSpace(
        name="smaller",
        resolutions=(8,),
        stem_channels=(8,),
        stem_stride=2,
        stem_activation=TINY.stem_activation,
        stages=(TINY.stages[0],),
        head_channels=(16,),
        head_activation=TINY.head_activation,
        classes=3,
    )
    steps: list[ProfileProgress] = []
    summary = profile_space(small, device, store, cache, 0.0, steps.append, subnets=4)
    assert summary.kernels > 0
    assert summary.subnets == 4
    assert summary.kernels_of_space == len(space_workloads(small))
    assert {one.phase for one in steps} == {"kernels", "subnets"}
    assert all(0 < one.done <= one.total for one in steps)
    assert all(one.eta_seconds >= 0 and one.rejected >= 0 for one in steps)
    assert store.check_integrity() == []

    counts = len(store.kernel_measurements(device.name)), len(store.network_measurements("local"))
    monkeypatch.setattr("bignas.latency.profile.DEFAULT_SUBNETS", 4)  # the usual number
    again = profile_space(small, device, store, cache, 10.0, subnets=6)
    assert again.subnets == 6
    assert again.kernels == again.kernels_of_space
    finals = [
        one.workload
        for one in store.kernel_measurements(device.name)
        if len(one.samples_ns) >= FINAL.rounds
    ]
    assert set(Counter(finals).values()) <= OFTEN
    order = [one.architecture for one in store.network_measurements(device.name)]
    networks, usual = Counter(order), set(order[: counts[1]])
    assert set(networks.values()) <= OFTEN
    assert len(networks) == 6
    first = next(place for place, one in enumerate(order) if one not in usual)
    checked = Counter(order[:first])
    assert min(checked[one] for one in usual) >= min(OFTEN), "further subnets came first"
    third = profile_space(small, device, store, cache, 10.0, subnets=6)
    assert third.stopped == StopReason.COMPLETE
    measured = len(store.network_measurements(device.name))
    assert measured == networks.total(), "checked again"


def test_a_missing_compiler_ends_profiling_with_its_error(
    device: Device,
    store: Store,
    cache: ObjectCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    small = SearchSpace.from_dict({**TINY.to_dict(), "name": "other"})
    monkeypatch.setattr("bignas.latency.tuning.BATCH", 2)
    with pytest.raises(ToolchainError, match="gcc"):
        profile_space(small, device, store, cache, 1.0)


@pytest.mark.slow
def test_profile_fit_predict_from_end_to_end(
    device: Device, store: Store, cache: ObjectCache
) -> None:
    summary = profile_space(TINY, device, store, cache, 10.0, subnets=20)
    assert summary.kernels == summary.kernels_of_space
    assert summary.subnets == 20
    predictor = fit_predictor(TINY, device, store)
    known = {one for one, _ in measured_subnets(store, device.name, TINY, evidence_hash())}
    random = np.random.default_rng(1234)
    fresh = list({one for one in (TINY.sample(random) for _ in range(200)) if one not in known})
    fresh = sorted(fresh, key=TINY.macs)[:: max(1, len(fresh) // 16)]
    assert len(fresh) >= 8
    kernels = tuned_kernels(store, device.name)
    records = measure_subnets(TINY, fresh, kernels, device, cache, Recorder(device.name))
    measured = np.array([one.p50_ns / 1e6 for one in records])
    predicted = predictor.predict(fresh)
    assert metrics.spearman(predicted.latency_ms, measured) > 0.8
    assert np.median(np.abs(predicted.latency_ms / measured - 1)) < 0.25
    assert (predicted.estimated_share == 0).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_loses_at_most_a_batch(tmp_path: Path) -> None:
    """Kill profiling again and again; every next run goes on where the last one was."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.latency.profile_tiny"]
    delays = np.random.default_rng().uniform(0.0, 3.0, size=4)
    for delay in delays:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=ROOT) as run:
            assert run.stdout is not None
            run.stdout.readline()  # the first batch is in the store
            time.sleep(delay)
            family = psutil.Process(run.pid).children(recursive=True)
            run.kill()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == [], "processes outlive the one that was killed"
        with Store.open() as store:
            assert store.check_integrity() == [], f"after {delays}"
            assert tuned_kernels(store, "local")
    subprocess.run(command, env=environment, check=True, cwd=ROOT, stdout=subprocess.PIPE)
    with Store.open() as store:
        assert store.check_integrity() == []
        records = store.kernel_measurements("local")
        finals = [one.workload for one in records if len(one.samples_ns) >= FINAL.rounds]
        assert set(Counter(finals).values()) <= OFTEN, "a kernel was tuned twice"
        assert set(finals) == set(space_workloads(TINY))
        architectures = [one.architecture for one in store.network_measurements("local")]
        assert len(set(architectures)) == 20
        assert set(Counter(architectures).values()) <= OFTEN
