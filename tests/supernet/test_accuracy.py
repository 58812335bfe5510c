"""Accuracy predictors learn made-up accuracies, know what they are about, and survive the disk."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bignas.device_db.accuracies import EvaluationSetting
from bignas.device_db.errors import ArchitectureError, InputError
from bignas.supernet import accuracy
from bignas.supernet.accuracy import (
    FEWEST_CHILDREN,
    AccuracyError,
    AccuracyKernel,
    AccuracyPredictor,
)
from bignas.supernet.accuracy_files import accuracy_path, read_accuracy_predictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.drawing import draw_children
from bignas.supernet.spaces import load_space

SPACE = load_space("cifar")
SETTING = EvaluationSetting("weights", "data", "validation", 5000, 2048)


def saturating(arch: Architecture) -> float:
    """Grows with the logarithm of the MACs, and less so with depth where stages are wide."""
    position = SPACE.encode(arch)
    gain = 0.03 * np.log(SPACE.macs(arch) / 1e6) + 0.01 * position[3] * (1 - position[2])
    return float(0.7 + gain + 0.01 * np.tanh(2 * position[-1]))


def fitted(top1: Callable[[Architecture], float], count: int = 60) -> AccuracyPredictor:
    children = {arch: top1(arch) for arch in draw_children(SPACE, count, seed=0)}
    return AccuracyPredictor.fit(SPACE, SETTING, children)


@pytest.fixture(scope="module")
def predictor() -> AccuracyPredictor:
    return fitted(saturating)


def fresh(count: int) -> list[Architecture]:
    rng = np.random.default_rng(99)
    return [SPACE.sample(rng) for _ in range(count)]


def test_it_learns_from_few_children(predictor: AccuracyPredictor) -> None:
    archs = fresh(100)
    truth = np.array([saturating(arch) for arch in archs])
    error = AccuracyError.between(predictor.predict(archs), truth)
    assert error.mae < 0.1 * truth.std()
    assert error.spearman > 0.98
    assert predictor.error.mae < 0.2 * truth.std()


def test_its_spread_is_that_of_its_errors() -> None:
    rng = np.random.default_rng(0)
    noise = 0.004
    predictor = fitted(lambda arch: saturating(arch) + float(rng.normal(0, noise)), 90)
    archs = fresh(200)
    spread = predictor.spread(archs)
    scores = (predictor.predict(archs) - [saturating(arch) for arch in archs]) / spread
    assert predictor.error.mae == pytest.approx(0.8 * noise, rel=0.5)
    assert np.median(spread) == pytest.approx(noise, rel=0.5)
    assert np.mean(np.abs(scores) < 2) > 0.9
    assert predictor.spread([]).shape == (0,)


def test_a_straight_line_needs_no_more_than_a_linear_kernel() -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(0, 0.01, len(SPACE.dimensions()))
    predictor = fitted(
        lambda arch: float(0.7 + SPACE.encode(arch) @ slopes + rng.normal(0, 0.003)), 60
    )
    assert predictor.kernel is AccuracyKernel.LINEAR


def test_many_at_once_equal_one_by_one(predictor: AccuracyPredictor) -> None:
    archs = fresh(20)
    rows = np.array([SPACE.positions(arch) for arch in archs])
    together = predictor.predict(archs)
    assert predictor.predict_rows(rows) == pytest.approx(together, abs=1e-12)
    assert [predictor.predict([arch])[0] for arch in archs] == pytest.approx(together, abs=1e-9)
    assert predictor.predict([]).shape == (0,)


@pytest.mark.parametrize("kernel", list(AccuracyKernel))
def test_its_own_arithmetic_is_that_of_the_process(
    predictor: AccuracyPredictor, kernel: AccuracyKernel
) -> None:
    start = accuracy._kernel(kernel, len(SPACE.dimensions()) + 1)
    parameters = start.theta + np.random.default_rng(0).normal(0, 0.3, len(start.theta))
    one = dataclasses.replace(predictor, kernel=kernel, parameters=parameters)
    rows = np.array([SPACE.positions(arch) for arch in fresh(20)])
    expected = one._process.predict(accuracy._inputs(SPACE, rows))
    assert np.ptp(expected) > 0
    assert one.predict_rows(rows) == pytest.approx(expected, abs=1e-9)


def test_it_comes_back_from_the_disk(predictor: AccuracyPredictor, tmp_path: Path) -> None:
    path = tmp_path / "net.accuracy.json"
    path.write_bytes(predictor.to_bytes())
    again = read_accuracy_predictor(path)
    assert again.to_bytes() == predictor.to_bytes()
    archs = fresh(20)
    assert again.predict(archs) == pytest.approx(predictor.predict(archs), abs=1e-12)
    assert again.held_out == predictor.held_out


def test_the_same_children_give_the_same_predictor(predictor: AccuracyPredictor) -> None:
    assert fitted(saturating).to_bytes() == predictor.to_bytes()


def test_it_knows_what_it_is_about(predictor: AccuracyPredictor) -> None:
    assert predictor.matches("weights", "data")
    assert not predictor.matches("weights", "other")
    assert not predictor.matches("other", "data")


def test_damaged_foreign_and_newer_files_are_refused(
    predictor: AccuracyPredictor, tmp_path: Path
) -> None:
    path = tmp_path / "x.accuracy.json"
    document = json.loads(predictor.to_bytes())
    tampered = json.loads(predictor.to_bytes())
    tampered["content"]["correct"][0] += 1
    newer = {**document, "version": 99}
    texts = [b"", b"\x00", b"{}", b"[" * 100_000, json.dumps(tampered).encode()]
    for text in [*texts, json.dumps(newer).encode(), predictor.to_bytes()[:-100]]:
        path.write_bytes(text)
        with pytest.raises(InputError) as caught:
            read_accuracy_predictor(path)
        assert len(str(caught.value).splitlines()) == 1
        assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="accuracy fit"):
        read_accuracy_predictor(tmp_path / "none")


def test_parts_that_do_not_fit_are_refused(predictor: AccuracyPredictor) -> None:
    changes: list[dict[str, Any]] = [
        {"rows": predictor.rows[:-1]},
        {"rows": predictor.rows + 10},
        {"parameters": predictor.parameters[:-1]},
        {"parameters": predictor.parameters * np.nan},
        {"correct": predictor.correct + SETTING.images},
        {"held_out": {}},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="fit"):
            dataclasses.replace(predictor, **change)


def test_too_few_and_foreign_children_are_refused() -> None:
    few = dict.fromkeys(draw_children(SPACE, FEWEST_CHILDREN - 1, seed=0), 0.5)
    with pytest.raises(InputError, match="at least"):
        AccuracyPredictor.fit(SPACE, SETTING, few)
    foreign = dict.fromkeys(draw_children(load_space("bignas"), 20, seed=0), 0.5)
    with pytest.raises(ArchitectureError):
        AccuracyPredictor.fit(SPACE, SETTING, foreign)


def test_the_predictor_lies_beside_its_checkpoint() -> None:
    assert accuracy_path("a/net.safetensors") == Path("a/net.accuracy.json")
    assert accuracy_path(Path("net.1")) == Path("net.1.accuracy.json")


def test_predicting_needs_no_torch() -> None:
    code = "import sys, bignas.supernet.accuracy; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
