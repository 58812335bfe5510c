"""Children are evaluated once, and by whichever process."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from bignas.device_db.errors import (
    ArchitectureError,
    CheckpointError,
    DataError,
    MeasurementError,
)
from bignas.device_db.store import Store
from bignas.supernet import children
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.children import ChildEvaluator
from bignas.supernet.data import ImageData
from bignas.supernet.drawing import draw_children
from bignas.supernet.evaluate import evaluate_architectures
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'store.sqlite'}") as opened:
        yield opened


@pytest.fixture
def checkpoint(tiny_space: SearchSpace, toy_data: ImageData) -> Checkpoint:
    return make_checkpoint(tiny_space, toy_data, seed=4)


def make_checkpoint(space: SearchSpace, data: ImageData, seed: int) -> Checkpoint:
    space = space.with_classes(len(data.classes))
    weights = Supernet(space, seed=seed).state_dict()
    return Checkpoint(
        space, weights, data.mean, data.std, data.classes, data.name, data.digest, 0, 0, {}
    )


def found_alone(
    checkpoint: Checkpoint, data: ImageData, archs: Sequence[Architecture]
) -> list[float]:
    """What this process finds, when nothing is known."""
    with Store.open("sqlite://") as empty:
        return ChildEvaluator(checkpoint, data, empty).evaluate(archs)


def spawned() -> set[int]:
    """The processes at work, by their numbers."""
    children = psutil.Process().children()
    return {one.pid for one in children if "spawn_main" in " ".join(one.cmdline())}


def test_it_is_the_accuracy_of_the_child(
    checkpoint: Checkpoint, toy_data: ImageData, store: Store
) -> None:
    archs = draw_children(checkpoint.space, 5, seed=0)
    plain = evaluate_architectures(checkpoint.network(), archs, toy_data, "validation", 20)
    found = ChildEvaluator(checkpoint, toy_data, store, max_images=20).evaluate(archs)
    assert found == [one.top1 for one in plain]
    assert len(set(found)) > 1


def test_nothing_is_evaluated_twice(
    checkpoint: Checkpoint, toy_data: ImageData, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = draw_children(checkpoint.space, 3, seed=0)
    evaluator = ChildEvaluator(checkpoint, toy_data, store)
    expected = evaluator.evaluate([second, first, second])
    assert expected[0] == expected[2]

    def refuse(*_: object) -> int:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(children, "count_correct", refuse)
    again = ChildEvaluator(checkpoint, toy_data, store)
    steps: list[tuple[int, int]] = []
    assert again.evaluate([second, first], 2, lambda *step: steps.append(step)) == expected[:2]
    assert steps == []
    with pytest.raises(AssertionError):
        again.evaluate([third])


def test_other_weights_and_images_are_evaluated_anew(
    checkpoint: Checkpoint, tiny_space: SearchSpace, toy_data: ImageData, store: Store
) -> None:
    other = make_checkpoint(tiny_space, toy_data, seed=5)
    arch = checkpoint.space.biggest()
    for one in (checkpoint, other):
        ChildEvaluator(one, toy_data, store).evaluate([arch])
    for images, calibration in ((10, None), (None, 10)):
        evaluator = ChildEvaluator(
            checkpoint, toy_data, store, max_images=images, calibration_images=calibration
        )
        assert evaluator.known() == {}
    assert ChildEvaluator(checkpoint, toy_data, store).known().keys() == {arch.key}
    assert ChildEvaluator(checkpoint, toy_data, store, "test").known() == {}


def test_an_interrupted_run_keeps_what_was_evaluated(
    checkpoint: Checkpoint, toy_data: ImageData, store: Store
) -> None:
    archs = draw_children(checkpoint.space, 4, seed=0)
    evaluator = ChildEvaluator(checkpoint, toy_data, store)

    def interrupt(done: int, total: int) -> None:
        assert total == len(archs)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(archs, progress=interrupt)
    assert evaluator.known().keys() == {arch.key for arch in archs[:2]}
    steps: list[tuple[int, int]] = []
    evaluator.evaluate(archs, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]


def test_what_does_not_fit_is_refused_before_anything_is_evaluated(
    checkpoint: Checkpoint, toy_data: ImageData, store: Store
) -> None:
    evaluator = ChildEvaluator(checkpoint, toy_data, store)
    with pytest.raises(ArchitectureError):
        evaluator.evaluate([checkpoint.space.smallest(), load_space("cifar").smallest()])
    assert evaluator.known() == {}
    with pytest.raises(DataError):
        ChildEvaluator(checkpoint, toy_data, store, "holdout")
    with pytest.raises(DataError):
        ChildEvaluator(checkpoint, toy_data, store, max_images=0)
    fewer = make_checkpoint(checkpoint.space, toy_data, seed=0)
    object.__setattr__(fewer, "classes", ("red", "green"))
    with pytest.raises(CheckpointError):
        ChildEvaluator(fewer, toy_data, store)


@pytest.mark.slow
def test_processes_find_the_same(checkpoint: Checkpoint, toy_data: ImageData, store: Store) -> None:
    archs = draw_children(checkpoint.space, 7, seed=0)
    evaluator = ChildEvaluator(checkpoint, toy_data, store)
    steps: list[tuple[int, int]] = []
    found = evaluator.evaluate(archs, 2, lambda *step: steps.append(step))
    assert steps == [(done, 7) for done in range(1, 8)]
    assert found == found_alone(checkpoint, toy_data, archs)


@pytest.mark.slow
def test_a_block_keeps_its_processes(
    checkpoint: Checkpoint, toy_data: ImageData, store: Store
) -> None:
    archs = draw_children(checkpoint.space, 6, seed=0)
    with ChildEvaluator(checkpoint, toy_data, store) as evaluator:
        found = evaluator.evaluate(archs[:3], 2)
        started = spawned()
        found += evaluator.evaluate(archs[3:5], 2) + evaluator.evaluate(archs[5:], 2)
        assert spawned() == started
        assert len(started) == 2
    assert spawned() == set()
    assert found == found_alone(checkpoint, toy_data, archs)


@pytest.mark.slow
def test_an_interrupted_block_starts_anew(
    checkpoint: Checkpoint, toy_data: ImageData, store: Store
) -> None:
    """No answer to a question of the interrupted call is taken for one to the next question."""
    archs = draw_children(checkpoint.space, 6, seed=0)

    def interrupt(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with ChildEvaluator(checkpoint, toy_data, store) as evaluator:
        with pytest.raises(KeyboardInterrupt):
            evaluator.evaluate(archs[:3], 2, interrupt)
        found = evaluator.evaluate(archs, 2)
    assert found == found_alone(checkpoint, toy_data, archs)


@pytest.mark.slow
def test_a_process_that_dies_is_told(
    checkpoint: Checkpoint, toy_data: ImageData, store: Store
) -> None:
    evaluator = ChildEvaluator(checkpoint, toy_data, store)
    weights = {name: value[:1] for name, value in checkpoint.weights.items()}  # do not load
    object.__setattr__(checkpoint, "weights", weights)
    with pytest.raises(MeasurementError, match="a process"):
        evaluator.evaluate(draw_children(checkpoint.space, 3, seed=0), 2)
