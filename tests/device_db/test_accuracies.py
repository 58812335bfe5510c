"""Accuracies are found by exactly what they were evaluated with, and never change."""

import dataclasses
from pathlib import Path

import pytest
import sqlalchemy as sql

from bignas.device_db.accuracies import EvaluationSetting
from bignas.device_db.errors import StoreError
from bignas.device_db.migration import upgrade
from bignas.device_db.rows import device_values
from bignas.device_db.schema import DEVICES, SCHEMA_REVISIONS
from bignas.device_db.store import Store
from tests.device_db import samples

SETTING = EvaluationSetting("w" * 64, "d" * 64, "validation", 100, 50)
OTHERS = [
    dataclasses.replace(SETTING, weights="x" * 64),
    dataclasses.replace(SETTING, data="x" * 64),
    dataclasses.replace(SETTING, split="test"),
    dataclasses.replace(SETTING, images=101),
    dataclasses.replace(SETTING, calibration_images=51),
]


def test_they_come_back_for_the_same_setting_only() -> None:
    with Store.open("sqlite://") as store:
        store.add_accuracies(SETTING, {"a": 1, "b": 100})
        store.add_accuracies(SETTING, {"c": 0})
        assert store.accuracies(SETTING) == {"a": 1, "b": 100, "c": 0}
        for other in OTHERS:
            assert store.accuracies(other) == {}
            store.add_accuracies(other, {"a": 7})
            assert store.accuracies(other) == {"a": 7}
        assert store.accuracies(SETTING) == {"a": 1, "b": 100, "c": 0}


def test_the_first_one_stays() -> None:
    with Store.open("sqlite://") as store:
        store.add_accuracies(SETTING, {"a": 1})
        store.add_accuracies(SETTING, {"a": 2, "b": 3})
        store.add_accuracies(SETTING, {})
        assert store.accuracies(SETTING) == {"a": 1, "b": 3}


@pytest.mark.parametrize("correct", [-1, 101])
def test_impossible_counts_are_refused_as_a_whole(correct: int) -> None:
    with Store.open("sqlite://") as store:
        with pytest.raises(StoreError):
            store.add_accuracies(SETTING, {"a": 1, "b": correct})
        assert store.accuracies(SETTING) == {}


@pytest.mark.parametrize(("images", "calibration"), [(0, 1), (1, 0)])
def test_an_evaluation_has_images(images: int, calibration: int) -> None:
    with pytest.raises(ValueError, match="images"):
        EvaluationSetting("w", "d", "test", images, calibration)


def test_a_store_of_the_first_schema_gets_the_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.sqlite'}"
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        upgrade(connection, SCHEMA_REVISIONS[0])
        device = device_values(samples.device())
        connection.execute(sql.insert(DEVICES).values(device))
    assert "accuracies" not in sql.inspect(engine).get_table_names()
    engine.dispose()
    with Store.open(url) as store:
        assert store.devices() == [samples.device()]
        store.add_accuracies(SETTING, {"a": 1})
        assert store.accuracies(SETTING) == {"a": 1}
