"""A predictor from the store: processes that are off as a whole do not spoil it."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.latency.bench import MEDIAN_DEVIATION
from bignas.latency.fitting import fit_predictor
from tests.latency.profile_written import fill, truth_ms
from tests.latency.tiny import TINY


def test_processes_that_are_off_as_a_whole_do_not_spoil_the_predictor(store: Store) -> None:
    fill(store, [1.0, 1.05, 0.96, 1.0, 1.0, 1.02])
    predictor = fit_predictor(TINY, store.device("board"), store)
    fresh = [TINY.sample(np.random.default_rng(seed)) for seed in range(100, 140)]
    found = predictor.predict(fresh)
    assert np.abs(found.latency_ms / truth_ms(store, fresh) - 1).max() < 0.012
    assert 0.002 < predictor.interval.floor < 0.025  # 0.04 with them


def test_intervals_know_that_binaries_are_measured_in_such_processes(store: Store) -> None:
    fill(store, np.exp(np.random.default_rng(1).normal(0, 0.03, 8)).tolist())
    predictor = fit_predictor(TINY, store.device("board"), store)
    assert predictor.interval.floor > 0.018 * MEDIAN_DEVIATION


def test_intervals_know_that_machines_change_within_minutes(store: Store) -> None:
    fill(store, [1.0] * 4)
    device = store.device("board")
    steady = fit_predictor(TINY, device, store).interval.floor
    random = np.random.default_rng(2)
    again = [
        replace(
            one,
            samples_ns=tuple(ns * float(np.exp(random.normal(0, 0.02))) for ns in one.samples_ns),
            created_at=one.created_at + timedelta(minutes=10),
            session="later",
        )
        for one in store.network_measurements("board")
    ]
    store.add_measurements(again)
    assert fit_predictor(TINY, device, store).interval.floor > steady + 0.005


def test_what_single_networks_change_by_is_left_when_the_drift_is_known(store: Store) -> None:
    fill(store, [1.0] * 4)
    device = store.device("board")
    steady = fit_predictor(TINY, device, store)
    assert steady.settled is not None
    random = np.random.default_rng(2)
    factors = {one.architecture: float(np.exp(random.normal(0, 0.03))) for one in _networks(store)}
    store.add_measurements([_later(one, 1.03) for one in _networks(store)])
    drifted = fit_predictor(TINY, device, store)
    store.add_measurements([_later(one, factors[one.architecture]) for one in _networks(store)])
    changed = fit_predictor(TINY, device, store)
    assert drifted.settled is not None
    assert changed.settled is not None
    assert drifted.settled.floor == pytest.approx(steady.settled.floor, abs=0.003)
    assert drifted.interval.floor > drifted.settled.floor + 0.005
    assert changed.settled.floor > steady.settled.floor + 0.01


def _networks(store: Store) -> list[Measurement]:
    return store.network_measurements("board")


def _later(record: Measurement, factor: float) -> Measurement:
    return replace(
        record,
        samples_ns=tuple(ns * factor for ns in record.samples_ns),
        created_at=record.created_at + timedelta(minutes=10),
        session="later",
    )
