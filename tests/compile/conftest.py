"""Fixtures of the compiler's tests: one cache of built kernels for the whole session."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests; shared by them all, kernels are built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGNAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
