"""What a training step consists of, as functions of configuration and step."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bignas.device_db.errors import InputError
from bignas.supernet.data import ImageData
from bignas.supernet.recipe import (
    Regularize,
    Schedule,
    TrainConfig,
    augment,
    cut_out,
    draw_architectures,
    draw_batch,
    learning_rate,
)
from bignas.supernet.recipes import built_in_recipes, load_recipe
from bignas.supernet.space import SearchSpace


@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.floats(0, 5),
    st.floats(0, 5),
    st.sampled_from(Schedule),
)
@settings(max_examples=60, deadline=None)
def test_the_rate_rises_falls_and_is_held(
    epochs: int, per_epoch: int, warmup: float, hold: float, schedule: Schedule
) -> None:
    config = TrainConfig(
        epochs=epochs, warmup_epochs=warmup, hold_epochs=hold, schedule=schedule, learning_rate=0.4
    )
    rates = [learning_rate(config, step, per_epoch) for step in range(epochs * per_epoch)]
    assert all(0 < rate <= 0.4 + 1e-12 for rate in rates)
    peak = int(np.argmax(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert np.all(np.diff(rates[peak:]) <= 1e-12)
    if schedule is Schedule.EXPONENTIAL:
        assert min(rates[peak:]) >= 0.4 * config.final_rate - 1e-12
        if hold >= 1 and epochs >= 12:
            assert rates[-1] == pytest.approx(0.4 * config.final_rate)


def test_an_architecture_that_is_alone_is_trained_once_a_step(tiny_space: SearchSpace) -> None:
    arch = tiny_space.middle()
    assert draw_architectures(TrainConfig(), tiny_space.only(arch), 3) == [arch]


def test_sandwich(tiny_space: SearchSpace) -> None:
    config = TrainConfig(random_children=3)
    drawn = draw_architectures(config, tiny_space, 5)
    assert drawn[:2] == [tiny_space.biggest(), tiny_space.smallest()]
    assert len(drawn) == 5
    assert drawn == draw_architectures(config, tiny_space, 5)
    others = [draw_architectures(config, tiny_space, step)[2:] for step in range(20)]
    assert len({tuple(archs) for archs in others}) > 10
    alone = TrainConfig(sandwich=False, distillation=False, regularize=Regularize.ALL)
    assert len(draw_architectures(alone, tiny_space, 5)) == 4


def test_an_epoch_shows_every_image_once(toy_data: ImageData) -> None:
    config = TrainConfig(batch_size=24, crop_margin=0.0, mirror=False)
    for epoch in range(2):
        steps = [draw_batch(config, toy_data.train, 4 * epoch + at, True) for at in range(4)]
        shown = {image.tobytes() for images, _ in steps for image in images}
        assert shown == {image.tobytes() for image in toy_data.train.images}
    first = draw_batch(config, toy_data.train, 0, True)
    again = draw_batch(config, toy_data.train, 0, True)
    other = draw_batch(dataclasses.replace(config, seed=1), toy_data.train, 0, True)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_augmentation_crops_and_mirrors() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (64, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(augment(images, rng, 0.0, False), images)
    mirrored = augment(images, rng, 0.0, True)
    kept = [np.array_equal(a, b) for a, b in zip(mirrored, images, strict=True)]
    turned = [np.array_equal(a, b[:, ::-1]) for a, b in zip(mirrored, images, strict=True)]
    assert np.all(np.array(kept) ^ np.array(turned))
    assert 10 < sum(kept) < 54
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for crop, whole in zip(augment(images, rng, 0.125, False), padded, strict=True):
        windows = [whole[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        assert any(np.array_equal(crop, window) for window in windows)


def test_cutout_blackens_a_square_of_each_image() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (64, 8, 12, 3), dtype=np.uint8)
    assert np.array_equal(cut_out(images, rng, 0.0), images)
    cut = cut_out(images, rng, 0.5)
    black = (cut == 0).all(axis=3)
    assert np.array_equal(cut[~black], images[~black])
    sizes = set()
    for one in black:
        rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        assert one.sum() == len(rows) * len(columns)  # a full rectangle
        assert rows[-1] - rows[0] < 4
        assert columns[-1] - columns[0] < 4
        sizes.add((len(rows), len(columns)))
    assert max(sizes) == (4, 4)
    assert len(sizes) > 1  # some at the border


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"schedule": "linear"},
        {"regularize": "none"},
        {"seed": -1},
        {"threads": 0},
        {"sandwich": False},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_configuration_forms() -> None:
    config = TrainConfig(schedule=Schedule.COSINE, threads=3, seed=9)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert dataclasses.replace(config, threads=1).identity() == config.identity()
    assert dataclasses.replace(config, seed=1).identity() != config.identity()
    with pytest.raises(InputError, match="speed"):
        TrainConfig.from_dict({"speed": 3})


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipes(name: str) -> None:
    assert TrainConfig(**load_recipe(name)) != TrainConfig()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("speed = 3", "unknown training option 'speed'"),
        ("epochs = 'many'", "epochs cannot be 'many'"),
        ("sandwich = 1", "sandwich cannot be 1"),
        ("batch_size = 1", "batch_size must lie between"),
        ("schedule = 'linear'", "schedule must be one of"),
        ("epochs", "not valid TOML"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe() -> None:
    with pytest.raises(InputError, match="no recipe 'nowhere': give a built-in name"):
        load_recipe("nowhere")
