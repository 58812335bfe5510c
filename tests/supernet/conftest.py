"""Small spaces and data that tests of this room share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bignas.device_db.workload import Activation
from bignas.supernet.data import ImageData, Split
from bignas.supernet.space import SearchSpace
from bignas.supernet.stage import Block, StageSpace


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_space() -> SearchSpace:
    """ReLU, two stages, one of them with shortcuts."""
    relu = Activation.RELU
    stages = (
        StageSpace((8,), (1,), (3,), (1,), 1, relu, False),
        StageSpace((8, 12, 16), (1, 2), (3, 5), (1, 2, 3), 2, relu, False),
    )
    return SearchSpace("tiny", (12, 16), (8,), 2, relu, stages, (16, 32), relu)


@pytest.fixture
def gated_space() -> SearchSpace:
    """Swish and squeeze-excite, and an elastic stem."""
    swish = Activation.SWISH
    stages = (
        StageSpace((8, 16), (1, 2), (3,), (1,), 1, swish, True),
        StageSpace((16, 24), (1, 2, 3), (3, 5), (4, 6), 2, swish, True),
        StageSpace((24, 40), (1, 2), (3, 5, 7), (6,), 1, Activation.HARD_SWISH, True),
    )
    return SearchSpace("gated", (20, 25, 32), (8, 16), 2, swish, stages, (32, 48), swish)


@pytest.fixture
def dense_space() -> SearchSpace:
    """Fused blocks, of all expand ratios, with squeeze-excite too, and a plain stage after them."""
    relu, swish, fused = Activation.RELU, Activation.SWISH, Block.FUSED_MBCONV
    stages = (
        StageSpace((8, 12), (1, 2), (3,), (1,), 1, relu, False, fused),
        StageSpace((12, 16), (1, 2, 3), (3, 5), (1, 2, 3), 2, swish, True, fused),
        StageSpace((16, 24), (1, 2), (3, 5), (2, 4), 2, relu, False),
    )
    return SearchSpace("dense", (13, 16), (8,), 1, relu, stages, (16, 32), relu)


@pytest.fixture
def toy_data() -> ImageData:
    """Sixteen-pixel images of three classes, told apart by their colour."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = rng.integers(0, 3, count)
        images = rng.integers(0, 120, (count, 16, 16, 3))
        images[np.arange(count), :, :, labels] += 100
        return Split(images.astype(np.uint8), labels.astype(np.int64))

    train = split(96)
    return ImageData(
        "toy",
        train,
        train,
        split(24),
        split(24),
        ("red", "green", "blue"),
        (0.3, 0.3, 0.3),
        (0.2, 0.2, 0.2),
        "toy-digest",
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run" / "net.safetensors"
