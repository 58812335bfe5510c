"""Properties of spaces and architectures, on the built-in spaces and on random ones."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bignas.device_db.errors import ArchitectureError, SpaceError
from bignas.device_db.workload import Activation, Operator, Workload
from bignas.supernet.architecture import Architecture, StageChoice
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space
from bignas.supernet.stage import Block, StageSpace, squeeze_channels

SPACES = [load_space("cifar"), load_space("bignas")]


def options(low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(low, high), min_size=1, max_size=3).map(lambda s: tuple(sorted(s)))


stage_spaces = st.builds(
    StageSpace,
    channels=options(1, 24),
    depths=options(1, 3),
    kernels=st.sampled_from([(1,), (3,), (3, 5), (3, 5, 7)]),
    expands=options(1, 4),
    stride=st.integers(1, 2),
    activation=st.sampled_from(list(Activation)),
    squeeze_excite=st.booleans(),
    block=st.sampled_from(list(Block)),
)
spaces = st.builds(
    SearchSpace,
    name=st.just("random"),
    resolutions=options(4, 40),
    stem_channels=options(1, 16),
    stem_stride=st.integers(1, 2),
    stem_activation=st.sampled_from(list(Activation)),
    stages=st.lists(stage_spaces, min_size=1, max_size=3).map(tuple),
    head_channels=options(1, 40),
    head_activation=st.sampled_from(list(Activation)),
    classes=st.integers(1, 20),
)
seeds = st.integers(0, 2**32 - 1)


@given(spaces, seeds, st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_moves_stay_inside_the_space(space: SearchSpace, seed: int, probability: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng), space.sample(rng)
    mutant = space.mutate(first, rng, probability)
    child = space.cross(first, second, rng)
    for arch in (first, second, mutant, child, space.smallest(), space.biggest()):
        space.check(arch)
        assert space.contains(arch)
    assert (mutant != first) == (space.size() > 1)
    for mixed, one, other in zip(
        space._values(child), space._values(first), space._values(second), strict=True
    ):
        assert mixed in (one, other)


@given(spaces, seeds)
@settings(max_examples=60, deadline=None)
def test_text_forms_are_lossless(space: SearchSpace, seed: int) -> None:
    again = SearchSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.digest == space.digest
    arch = space.sample(np.random.default_rng(seed))
    same = Architecture.from_dict(json.loads(arch.key))
    assert same == arch
    assert same.key == arch.key
    assert hash(same) == hash(arch)
    assert " " not in arch.key


@given(spaces, seeds)
@settings(max_examples=60, deadline=None)
def test_encoding_is_normalised_and_unique(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng), space.sample(rng)
    assert space.encode(first).shape == (len(space.dimensions()),)
    values = space.option_values([first, second])
    assert np.array_equal(values[0], values[1]) == (first == second)
    assert values[0, [0, 1, -1]].tolist() == [
        first.resolution,
        first.stem_channels,
        first.head_channels,
    ]
    assert space.option_values([]).shape == (0, values.shape[1])
    assert np.all(space.encode(space.smallest()) == 0)
    assert np.all(space.encode(space.biggest()) == 1)
    assert np.array_equal(space.encode(first), space.encode(second)) == (first == second)
    assert np.all((space.encode(first) >= 0) & (space.encode(first) <= 1))


@given(spaces, seeds)
@settings(max_examples=60, deadline=None)
def test_layers_chain_and_are_workloads(space: SearchSpace, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    layers = space.layers(arch)
    assert len({layer.name for layer in layers}) == len(layers)
    assert layers[0].operator is Operator.CONV
    assert layers[0].name == "stem"
    assert [layer.name for layer in layers[-3:]] == ["head", "pool", "classifier"]
    trunk = [layer for layer in layers if ".squeeze_" not in layer.name]
    for before, after in itertools.pairwise(trunk):
        assert after.in_channels == before.out_channels
        assert (after.height, after.width) == (before.out_height, before.out_width)
    assert layers[-1].out_channels == space.classes
    for layer in layers:
        workload = Workload(
            layer.operator,
            layer.height,
            layer.width,
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            layer.stride,
            layer.padding,
            layer.activation,
            layer.residual,
        )
        assert (workload.macs, workload.out_height) == (layer.macs, layer.out_height)
    assert space.macs(arch) == sum(layer.macs for layer in layers)
    assert space.params(arch) == sum(layer.params for layer in layers)
    assert space.macs(space.smallest()) <= space.macs(arch) <= space.macs(space.biggest())


@given(spaces, seeds)
@settings(max_examples=60, deadline=None)
def test_a_space_of_one_architecture_holds_the_same_network(space: SearchSpace, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    widths = [arch.stem_channels, *(stage.channels for stage in arch.stages)]
    chance = any(
        before == after and stage.stride == 1 and not space.has_shortcut(index, 0)
        for index, (before, after, stage) in enumerate(
            zip(widths, widths[1:], space.stages, strict=False)
        )
    )
    if chance:
        with pytest.raises(ArchitectureError, match="shortcut"):
            space.only(arch)
        return
    alone = space.only(arch)
    assert list(alone.architectures()) == [arch]
    assert alone.layers(arch) == space.layers(arch)


@given(spaces, seeds, st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_macs_of_many_are_those_of_each(space: SearchSpace, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    archs = [space.sample(rng) for _ in range(count)]
    rows = np.array([space.positions(arch) for arch in archs], dtype=np.int64)
    rows = rows.reshape(count, len(space.dimensions()))
    assert space.macs_at(rows).tolist() == [space.macs(arch) for arch in archs]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_stages_come_from_the_cache(space: SearchSpace) -> None:
    arch = space.sample(np.random.default_rng(3))
    first = space.stage_layers(1, 16, 32, arch.stages[1])
    assert space.stage_layers(1, 16, 32, arch.stages[1]) is first
    assert copy.deepcopy(space).layers(arch) == space.layers(arch)


@given(spaces)
@settings(max_examples=40, deadline=None)
def test_a_shortcut_does_not_depend_on_the_architecture(space: SearchSpace) -> None:
    for arch in (space.smallest(), space.biggest(), space.sample(np.random.default_rng(0))):
        for layer in space.layers(arch):
            if layer.name.endswith(".project"):
                _, stage, block, _ = layer.name.split(".")
                assert layer.residual == space.has_shortcut(int(stage), int(block))


def test_every_architecture_is_listed_once() -> None:
    stage = StageSpace((8, 16), (1, 2), (3,), (1, 2), 2, Activation.RELU, False)
    space = SearchSpace("s", (8, 16), (8,), 1, Activation.RELU, (stage,), (8,), Activation.RELU)
    everything = list(space.architectures())
    assert len(set(everything)) == len(everything) == space.size() == 16
    assert everything[0] == space.smallest()
    assert everything[-1] == space.biggest()
    assert all(space.contains(arch) for arch in everything)


def test_a_single_architecture_has_no_neighbour() -> None:
    stage = StageSpace((8,), (1,), (3,), (1,), 1, Activation.RELU, False)
    space = SearchSpace("one", (8,), (8,), 1, Activation.RELU, (stage,), (8,), Activation.RELU)
    arch = space.smallest()
    assert space.mutate(arch, np.random.default_rng(0), 1.0) == arch
    assert space.dimensions() == []


def test_digest_ignores_the_name_only() -> None:
    space = SPACES[0]
    assert dataclasses.replace(space, name="other").digest == space.digest
    assert space.with_classes(11).digest != space.digest
    assert space.with_classes(space.classes) is space


def test_spaces_without_fused_blocks_are_what_they_were() -> None:
    """The form of a stage names its kind of block only where it is not the first one there was."""
    for stage in SPACES[1].stages:
        assert "block" not in stage.to_dict()
        fused = dataclasses.replace(stage, block=Block.FUSED_MBCONV)
        assert fused.to_dict() == {**stage.to_dict(), "block": "fused_mbconv"}
    first, *rest = SPACES[1].stages
    changed = dataclasses.replace(first, block=Block.FUSED_MBCONV)
    space = dataclasses.replace(SPACES[1], stages=(changed, *rest))
    assert space.digest != SPACES[1].digest
    assert SearchSpace.from_dict(space.to_dict()) == space


def test_a_block_of_an_unknown_kind_is_refused() -> None:
    content = SPACES[0].to_dict()
    content["stages"][1]["block"] = "bottleneck"
    with pytest.raises(SpaceError, match=r"stages\[1\]: block = 'bottleneck' is unknown") as caught:
        SearchSpace.from_dict(content)
    assert "fused_mbconv" in str(caught.value)


def test_squeeze_channels_are_multiples_of_eight() -> None:
    for channels in range(1, 400):
        squeezed = squeeze_channels(channels)
        assert squeezed % 8 == 0
        assert squeezed >= 8
        assert abs(squeezed - channels / 4) <= 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": (16, 8)}, "ascend"),
        ({"channels": (8, 8)}, "ascend"),
        ({"channels": ()}, "at least one"),
        ({"channels": (0,)}, "channels"),
        ({"channels": (True,)}, "channels"),
        ({"kernels": (4,)}, "odd"),
        ({"depths": (1.5,)}, "depths"),
        ({"expands": (-1, 2)}, "expands"),
        ({"stride": 0}, "stride"),
        ({"activation": "gelu"}, "activation"),
        ({"squeeze_excite": "yes"}, "squeeze_excite"),
    ],
)
def test_a_malformed_stage_is_refused(change: dict[str, object], words: str) -> None:
    good = StageSpace((8,), (1,), (3,), (1,), 1, Activation.RELU, False)
    with pytest.raises(SpaceError, match=words):
        dataclasses.replace(good, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolution": 33}, "resolution = 33 .*allowed: 28, 32"),
        ({"head_channels": 1}, "head_channels = 1"),
        ({"stages": SPACES[0].smallest().stages[:3]}, "stages: 3 given"),
        (
            {"stages": (*SPACES[0].smallest().stages[:3], StageChoice(96, 4, 3, 2))},
            r"stages\.3\.depth = 4 .*allowed: 1, 2",
        ),
    ],
)
def test_a_foreign_architecture_is_named(change: dict[str, object], words: str) -> None:
    space = SPACES[0]
    arch = dataclasses.replace(space.smallest(), **change)  # type: ignore[arg-type]
    assert not space.contains(arch)
    with pytest.raises(ArchitectureError, match=words):
        space.check(arch)
    with pytest.raises(ArchitectureError):
        space.encode(arch)


@pytest.mark.parametrize(
    "published", [(242, 4.5), (418, 5.5), (586, 6.4), (1040, 9.5)], ids=["S", "M", "L", "XL"]
)
def test_children_have_the_size_of_the_published_ones(published: tuple[float, float]) -> None:
    """Some child has its million MACs within 1% and its million parameters within 3%."""
    space = load_space("bignas")
    counts = [len(options) for _, options in space.dimensions()]

    def distance(indices: list[int]) -> float:
        """How far off, in tolerances."""
        arch = space.at(indices)
        figures = np.array([space.macs(arch), space.params(arch)]) / 1e6
        return float((np.abs(figures / published - 1) / (0.01, 0.03)).max())

    nearest = np.inf
    for seed in range(5):
        rng = np.random.default_rng(seed)
        indices = [int(rng.integers(count)) for count in counts]
        for _ in range(3000):
            changed = list(indices)
            for place in rng.choice(len(counts), 3, replace=False):
                changed[place] = int(rng.integers(counts[place]))
            if distance(changed) <= distance(indices):
                indices = changed
        nearest = min(nearest, distance(indices))
        if nearest <= 1:
            break
    assert nearest <= 1
