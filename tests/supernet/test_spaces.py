"""Space files: the built-in ones load, malformed ones are refused by a line naming the key."""

from pathlib import Path

import pytest

from bignas.device_db.errors import SpaceError, UnknownSpaceError
from bignas.device_db.workload import Activation
from bignas.supernet.spaces import built_in_spaces, load_space

GOOD = """
resolutions = [16, 24]
stem_channels = { min = 8, max = 24, step = 8 }
stem_stride = 1
stem_activation = "relu"
head_channels = [32]
head_activation = "swish"

[[stages]]
channels = { min = 8, max = 9 }
depths = [1]
kernels = [3, 5]
expands = [1, 2]
stride = 2
activation = "relu"
squeeze_excite = true
"""


def test_built_in_spaces_are_those_of_the_paper_and_the_small_machine() -> None:
    assert {"bignas", "cifar"} <= set(built_in_spaces())
    for name in built_in_spaces():
        assert load_space(name).name == name
    cifar, paper = load_space("cifar"), load_space("bignas")
    assert (cifar.name, paper.name) == ("cifar", "bignas")
    assert not any(stage.squeeze_excite for stage in cifar.stages)
    assert all(stage.squeeze_excite for stage in paper.stages)
    assert {stage.activation for stage in paper.stages} == {Activation.SWISH}
    assert [stage.stride for stage in paper.stages] == [1, 2, 2, 2, 1, 2, 1]
    assert paper.head_channels[0] == 1280
    assert paper.head_channels[-1] == 1408


def test_a_file_is_a_space(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    space = load_space(str(path))
    assert space.name == "mine"
    assert space.stem_channels == (8, 16, 24)
    assert space.stages[0].channels == (8, 9)
    assert (space.stem_kernel, space.in_channels, space.classes) == (3, 3, 10)
    path.write_text(f'name = "other"\n{GOOD}')
    assert load_space(str(path)) == load_space(str(path))
    assert load_space(str(path)).name == "other"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("stem_stride = 1", "", "'stem_stride' is missing"),
        ("stem_stride = 1", 'stem_stride = "1"', "stem_stride"),
        ("stem_stride = 1", "stem_strid = 1", "unknown key 'stem_strid'"),
        ("[16, 24]", "[24, 16]", "resolutions must ascend"),
        ("[16, 24]", "[16, 0]", "resolutions"),
        ("[16, 24]", "16", "resolutions must be a list"),
        ("[16, 24]", "[16, 99999999]", "resolutions"),
        ("min = 8, max = 24", "min = 32, max = 24", "min 32 is greater than max 24"),
        ("step = 8", "step = 7", "step 7"),
        ("step = 8", "step = 0", "step"),
        ("step = 8", "stop = 8", "min, max and step"),
        ("max = 24, step = 8", "max = 999999999", "more than"),
        ("expands = [1, 2]", "expands = [2, 1]", r"stages\[0\]: expands"),
        ("expands = [1, 2]", "", r"stages\[0\]: key 'expands' is missing"),
        ("min = 8, max = 9", "min = 9, max = 8", r"stages\[0\]: channels"),
        ('activation = "swish"', 'activation = "gelu"', "gelu.*allowed"),
        ("[[stages]]", "[stages]", "stages"),
        ("[[stages]]", "[[stage]]", "unknown key 'stage'"),
        ("resolutions = ", "resolutions: ", "not valid TOML"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(SpaceError, match=words) as caught:
        load_space(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(UnknownSpaceError, match="bignas, cifar"):
        load_space("imagenet")
    with pytest.raises(UnknownSpaceError, match="TOML"):
        load_space(str(tmp_path / "none.toml"))
    with pytest.raises(SpaceError, match="cannot read"):
        load_space(str(tmp_path))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpaceError, match="UTF-8"):
        load_space(str(binary))
