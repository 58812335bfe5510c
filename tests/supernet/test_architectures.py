"""Architectures as a user names them."""

import json
from pathlib import Path

import numpy as np
import pytest

from bignas.device_db.errors import ArchitectureError
from bignas.supernet.architectures import load_architectures
from bignas.supernet.spaces import load_space

SPACE = load_space("cifar")


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_words() -> None:
    assert load_architectures("smallest", SPACE, rng()) == [SPACE.smallest()]
    assert load_architectures("biggest", SPACE, rng()) == [SPACE.biggest()]
    drawn = load_architectures("random:200", SPACE, rng())
    assert len(set(drawn)) == 200
    assert drawn == load_architectures("random:200", SPACE, rng())
    assert all(SPACE.contains(arch) for arch in drawn)


def test_a_random_draw_may_exhaust_the_space(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(
        "resolutions = [8, 16]\nstem_channels = [8]\nstem_stride = 1\nstem_activation = 'relu'\n"
        "head_channels = [8, 16]\nhead_activation = 'relu'\n[[stages]]\nchannels = [8]\n"
        "depths = [1, 2]\nkernels = [3]\nexpands = [1]\nstride = 1\nactivation = 'relu'\n"
        "squeeze_excite = false\n"
    )
    space = load_space(str(path))
    assert len(set(load_architectures("random:8", space, rng()))) == space.size() == 8
    with pytest.raises(ArchitectureError, match="from 1 to 8"):
        load_architectures("random:9", space, rng())


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "arch.json"
    archs = [SPACE.smallest(), SPACE.biggest()]
    path.write_text(json.dumps(archs[0].to_dict()))
    assert load_architectures(str(path), SPACE, rng()) == archs[:1]
    path.write_text(json.dumps([arch.to_dict() for arch in archs]))
    assert load_architectures(str(path), SPACE, rng()) == archs


@pytest.mark.parametrize("text", ["random:0", "random:-1", "random:x", "random:", "random:1e3"])
def test_malformed_draws(text: str) -> None:
    with pytest.raises(ArchitectureError, match="random:"):
        load_architectures(text, SPACE, rng())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "empty"),
        ("3", "JSON object"),
        ("[null]", "JSON object"),
        ('{"resolution": 32}', "stem_channels"),
        ('{"resolution": 32, "width": 3}', "unknown key 'width'"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "arch.json"
    path.write_text(content)
    with pytest.raises(ArchitectureError, match=words) as caught:
        load_architectures(str(path), SPACE, rng())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("resolution", "32", "resolution must be a positive integer"),
        ("resolution", True, "resolution must be a positive integer"),
        ("resolution", 30, "resolution = 30 .*allowed: 28, 32"),
        ("stages", [], "stages"),
        ("stages", {}, "stages"),
        (
            "stages",
            [{"channels": 0, "depth": 1, "kernel": 3, "expand": 1}],
            r"stages\[0\].channels",
        ),
        ("stages", [{"channels": 16}], r"stages\[0\]: key 'depth' is missing"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, key: str, value: object, words: str) -> None:
    path = tmp_path / "arch.json"
    path.write_text(json.dumps([SPACE.smallest().to_dict() | {key: value}]))
    with pytest.raises(ArchitectureError, match=words):
        load_architectures(str(path), SPACE, rng())


def test_a_missing_file_lists_the_forms(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="smallest, biggest or random:N"):
        load_architectures(str(tmp_path / "none.json"), SPACE, rng())
    with pytest.raises(ArchitectureError, match="cannot read"):
        load_architectures(str(tmp_path), SPACE, rng())
