"""Evaluations tell what a predictor misses from what the machine has changed by."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bignas.compile.objects import ObjectCache
from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import Measurement
from bignas.device_db.store import Store
from bignas.latency import evaluation
from bignas.latency.drift import Drift
from bignas.latency.evaluation import BATCH, REFERENCES, PredictorEvaluation, evaluate_predictor
from bignas.latency.fitting import fit_predictor
from bignas.supernet.architecture import Architecture
from tests.latency.profile_written import fill, network, truth_ms
from tests.latency.tiny import TINY

SUBNETS = 2 * BATCH + 3


def evaluated(
    store: Store, monkeypatch: pytest.MonkeyPatch, factor: Callable[[int], float]
) -> tuple[PredictorEvaluation, list[int]]:
    """Evaluate where batches take as many times as long as they should; also their sizes."""
    fill(store, [1.0] * 4)
    device = store.device("board")
    predictor = fit_predictor(TINY, device, store)
    batches: list[int] = []

    def measured(
        _: object, chosen: Sequence[Architecture], *__: object, processes: int, **___: Any
    ) -> list[Measurement]:
        now_ms = truth_ms(store, chosen) * factor(len(batches))
        batches.append(len(chosen))
        records = [network(*one, 0) for one in zip(chosen, now_ms.tolist(), strict=True)]
        return records * processes

    monkeypatch.setattr(evaluation, "measure_subnets", measured)
    monkeypatch.setattr(evaluation, "ensure_networks_tuned", lambda *_, **__: {})
    before = len(store.network_measurements("board"))
    done: list[int] = []
    result = evaluate_predictor(
        predictor, TINY, device, store, ObjectCache(device.target), SUBNETS, 0,
        lambda count, total: done.append(count) if total == SUBNETS else None,
    )  # fmt: skip
    assert len(store.network_measurements("board")) == before
    assert done == [BATCH, 2 * BATCH, SUBNETS]
    return result, batches


def test_a_machine_that_has_not_changed_is_predicted_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, batches = evaluated(store, monkeypatch, lambda _: 1.0)
    assert batches == [BATCH + REFERENCES, BATCH + REFERENCES, 3 + REFERENCES]
    assert result.n == len(result.measured_ms) == len(result.predicted_ms) == SUBNETS
    assert result.drift == pytest.approx([0.0] * 3, abs=1e-9)
    assert result.mape == pytest.approx(result.unshifted_mape)
    assert result.mape < 0.005
    assert result.repeatability == 0


def test_predictions_follow_what_the_references_show(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = evaluated(store, monkeypatch, lambda batch: (1.05, 1.02, 0.97)[batch])
    assert result.drift == pytest.approx([0.05, 0.02, -0.03], abs=1e-3)
    assert result.drift_per_doubling == pytest.approx(0.0, abs=1e-3)
    expected_ms, now_ms = np.transpose(result.references_ms)
    drifted = np.repeat([1.05, 1.02, 0.97], REFERENCES)
    assert now_ms / expected_ms == pytest.approx(drifted, rel=2e-3)
    assert result.mape < 0.005
    assert result.unshifted_mape > 0.025
    assert result.unshifted_coverage < result.coverage
    assert np.mean(np.abs(np.divide(result.predicted_ms, result.measured_ms) - 1)) < 0.005


@pytest.mark.parametrize(
    ("known", "covered"),
    [
        ({}, 0.0),
        ({"batch_variances": np.full(3, 0.05**2)}, 1.0),
        ({"scatter": 0.03}, 0.0),
        ({"scatter": 0.05}, 1.0),
    ],
)
def test_intervals_know_how_far_the_drift_is_off_and_what_references_differ_by(
    store: Store, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], covered: float
) -> None:
    drift = replace(Drift.none(3), **known)
    monkeypatch.setattr(evaluation, "estimate_drift", lambda *_: drift)
    result, _ = evaluated(store, monkeypatch, lambda _: 1.06)
    assert result.coverage == covered


def test_a_subnet_that_cannot_be_measured_ends_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [1.0] * 4)
    device = store.device("board")
    predictor = fit_predictor(TINY, device, store)

    def crashed(_: object, chosen: Sequence[Architecture], *__: object, **___: Any) -> Any:
        return [replace(network(one, 1.0, 0), samples_ns=(), error="stopped") for one in chosen]

    monkeypatch.setattr(evaluation, "measure_subnets", crashed)
    monkeypatch.setattr(evaluation, "ensure_networks_tuned", lambda *_, **__: {})
    with pytest.raises(MeasurementError, match="stopped"):
        evaluate_predictor(predictor, TINY, device, store, ObjectCache(device.target), 2, 0)
