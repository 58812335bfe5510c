"""Fixtures of the measuring tests: a store, a data folder of their own, one cache of kernels."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bignas.compile.objects import ObjectCache
from bignas.device_db.device import Device
from bignas.device_db.probe import LOCAL
from bignas.device_db.store import Store


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests; shared by them all, kernels are built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGNAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's store and data out of the tests."""
    monkeypatch.setenv("BIGNAS_DB", f"sqlite:///{tmp_path / 'store.sqlite'}")
    monkeypatch.setenv("BIGNAS_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open() as opened:
        yield opened


@pytest.fixture
def device(store: Store) -> Device:
    return store.device(LOCAL)


@pytest.fixture
def cache(device: Device) -> ObjectCache:
    return ObjectCache(device.target)
