"""The correction model: chosen by evidence, harmless without, the same from run to run."""

import json

import numpy as np
import pytest

from bignas.latency.regression import Array, Correction, ModelKind, Ridge, fit_correction


def samples(count: int, seed: int = 0) -> tuple[Array, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)), rng


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_is_corrected_without_evidence(count: int) -> None:
    features, _ = samples(count)
    fit = fit_correction(features, np.full(count, 0.2), 0)
    assert fit.correction.kind is ModelKind.ZERO
    assert fit.residuals == pytest.approx(np.full(count, 0.2))
    assert fit.correction.predict(np.ones((3, 6))) == pytest.approx(0)


def test_noise_around_zero_is_left_alone() -> None:
    left_alone = 0
    for seed in range(10):
        features, rng = samples(30, seed)
        kind = fit_correction(features, rng.normal(0, 0.05, 30), seed).correction.kind
        left_alone += kind in (ModelKind.ZERO, ModelKind.CONSTANT)
    assert left_alone >= 8


def test_a_constant_a_line_and_a_curve_are_each_recognised() -> None:
    features, rng = samples(300, 1)
    noise = rng.normal(0, 0.01, 300)
    line = features @ np.array([0.1, -0.05, 0, 0, 0.02, 0])
    curve = np.where(features[:, 0] > 0, 0.3, -0.1) * np.sign(features[:, 1])
    kinds = [fit_correction(features, target + noise, 0) for target in (0.2, line, curve)]
    assert [fit.correction.kind for fit in kinds] == [
        ModelKind.CONSTANT,
        ModelKind.RIDGE,
        ModelKind.TREES,
    ]


@pytest.mark.parametrize("count", [4, 9, 16, 40])
def test_the_winner_is_never_worse_than_no_correction(count: int) -> None:
    for seed in range(3):
        features, rng = samples(count, seed)
        targets = rng.normal(0.02, 0.05, count) + 0.03 * features[:, 0]
        fit = fit_correction(features, targets, seed)
        assert fit.errors[fit.correction.kind] <= fit.errors[ModelKind.ZERO]
        assert np.abs(fit.residuals).mean() == pytest.approx(fit.errors[fit.correction.kind])


def test_a_correction_is_not_extrapolated() -> None:
    features, _ = samples(50)
    targets = features[:, 0] * 0.1
    model = Correction(ModelKind.RIDGE, ridge=Ridge.fit(features, targets))
    assert abs(model.predict(np.full((1, 6), 1e6))[0]) < 1


def test_inputs_that_never_went_together_do_not_add_up() -> None:
    """Each is within its range, together they are far outside."""
    random = np.random.default_rng(4)
    size = random.uniform(-1, 1, 60)
    features = np.column_stack([size, -size + random.normal(0, 0.01, 60)])
    targets = features @ (3.0, 2.9)
    predicted = Ridge.fit(features, targets).predict(np.array([[1.0, 1.0]]))
    assert predicted[0] == pytest.approx(targets.max())


def test_constant_and_repeated_columns_do_no_harm() -> None:
    features, rng = samples(40)
    features = np.column_stack([features, features, np.full(40, 7.0)])
    targets = features[:, 0] * 0.1 + rng.normal(0, 0.001, 40)
    predicted = Ridge.fit(features, targets).predict(features)
    assert np.abs(predicted - targets).mean() < 0.01


def test_saving_keeps_every_bit_and_fitting_again_gives_the_same() -> None:
    features, rng = samples(200)
    targets = np.sign(features[:, 0]) * 0.2 + rng.normal(0, 0.01, 200)
    first, second = (fit_correction(features, targets, 3).correction for _ in range(2))
    assert first.kind is ModelKind.TREES
    text = json.dumps(first.to_dict())
    assert text == json.dumps(second.to_dict())
    loaded = Correction.from_dict(json.loads(text))
    assert np.array_equal(loaded.predict(features), first.predict(features))
    assert json.dumps(loaded.to_dict()) == text


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        fit_correction(np.zeros((3, 2)), np.zeros(4), 0)


def test_a_matrix_that_the_fast_decomposition_gives_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    features, rng = samples(60)
    features = np.column_stack([features, features[:, 0] - features[:, 1]])
    targets = features @ rng.normal(size=7) + rng.normal(0, 0.1, 60)
    usual = Ridge.fit(features, targets)

    def give_up(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", give_up)
    assert Ridge.fit(features, targets).predict(features) == pytest.approx(usual.predict(features))
