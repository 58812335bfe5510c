"""Fused inverted bottlenecks: found in networks, chosen by latencies, equal in numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bignas.compile.child_graph import graph_with_random_weights
from bignas.compile.fusion import LARGE_BYTES, choose_kernels, fuse_graph, kernel_options
from bignas.compile.graph import INPUT, KernelCall, KernelGraph
from bignas.compile.inverted_bottleneck import parts_of
from bignas.compile.workload import workloads
from bignas.device_db.workload import Activation, Operator, Workload
from bignas.supernet.space import SearchSpace
from tests.compile.networks import compile_graph, run_compiled, space_from

# the second stage has wide activations of 44 x 44 x 48 values, the third small ones
LARGE = """
name = "large"
resolutions = [88]
stem_channels = [16]
stem_kernel = 3
stem_stride = 2
stem_activation = "relu6"
head_channels = [24]
head_activation = "relu6"
in_channels = 3
classes = 4

[[stages]]
channels = [16]
depths = [1, 2]
kernels = [3, 5]
expands = [3, 4]
stride = 1
activation = "relu6"
squeeze_excite = false

[[stages]]
channels = [24]
depths = [2]
kernels = [5]
expands = [3]
stride = 2
activation = "relu6"
squeeze_excite = false

[[stages]]
channels = [24]
depths = [1]
kernels = [3]
expands = [2]
stride = 2
activation = "relu6"
squeeze_excite = false
"""


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    return space_from(LARGE, tmp_path)


def is_fused(one: Workload) -> bool:
    return one.operator is Operator.INVERTED_BOTTLENECK


def test_large_blocks_are_fused_and_small_ones_are_not(space: SearchSpace) -> None:
    layers = workloads(space, space.biggest())
    chosen = choose_kernels(layers, {})
    fused = [one for one in chosen if is_fused(one)]
    assert fused
    unfolded = [part for one in chosen for part in (parts_of(one) if is_fused(one) else (one,))]
    assert tuple(unfolded) == layers
    for one in fused:
        assert one.height * one.width * one.hidden_channels * 4 > LARGE_BYTES
    assert sum(one.macs for one in chosen) == space.macs(space.biggest())
    assert set(kernel_options(layers)) == {*fused, *layers}


def test_the_faster_option_is_chosen(space: SearchSpace) -> None:
    layers = workloads(space, space.biggest())
    options = kernel_options(layers)
    for per_fused, expected in ((2.9, True), (3.1, False)):
        latency_us = {one: per_fused if is_fused(one) else 1.0 for one in options}
        chosen = choose_kernels(layers, latency_us)
        assert any(map(is_fused, chosen)) is expected
    unmeasured = {one: 1.0 for one in options if not is_fused(one)}
    assert choose_kernels(layers, unmeasured) == choose_kernels(layers, {})


@pytest.mark.parametrize("threads", [1, 2])
def test_graphs_are_fused_as_layers_are(space: SearchSpace, threads: int, tmp_path: Path) -> None:
    """The kernels that are predicted are those that are built, and give the same numbers."""
    for architecture in (space.smallest(), space.biggest()):
        layered = graph_with_random_weights(space, architecture)
        fused = fuse_graph(layered, {})
        assert fused.workloads == choose_kernels(layered.workloads, {})
        assert len(fused.calls) < len(layered.calls)
        images = np.random.default_rng(0).standard_normal((2, 3, 88, 88)).astype(np.float32)
        plain, quick = (
            run_compiled(compile_graph(graph, count), images, tmp_path)
            for graph, count in ((layered, 1), (fused, threads))
        )
        assert np.abs(plain - quick).max() <= 1e-5 * np.abs(plain).max()


def block(residual: bool = False, other: str | None = None) -> KernelGraph:
    expand = Workload(Operator.POINTWISE, 60, 60, 8, 32, activation=Activation.RELU)
    depthwise = Workload(Operator.DEPTHWISE, 60, 60, 32, 32, 3, 1, 1, Activation.RELU)
    project = Workload(Operator.POINTWISE, 60, 60, 32, 8, residual=residual)
    shapes = {"a": (32, 8, 1, 1), "b": (32, 1, 3, 3), "c": (8, 32, 1, 1)}
    calls = []
    for work, source, name in ((expand, INPUT, "a"), (depthwise, "a", "b"), (project, "b", "c")):
        weights = np.zeros(shapes[name], np.float32)
        residual_of = other if work.residual else None
        calls.append(KernelCall(work, source, name, residual_of, weights, np.zeros(len(weights))))
    return KernelGraph(tuple(calls), (8, 60, 60), 8 * 60 * 60)


def test_values_that_others_read_keep_a_block_apart() -> None:
    graph = block()
    assert len(fuse_graph(graph, {}).calls) == 1
    pool = Workload(Operator.GLOBAL_POOL, 60, 60, 32, 32)
    reader = KernelCall(pool, "b", "d", None, None, np.zeros(32))
    assert fuse_graph(replace(graph, calls=(*graph.calls, reader)), {}).calls[:3] == graph.calls


@pytest.mark.parametrize(("other", "calls"), [(INPUT, 1), ("elsewhere", 3)])
def test_only_the_own_input_is_a_residual_of_a_fused_block(other: str, calls: int) -> None:
    assert len(fuse_graph(block(residual=True, other=other), {}).calls) == calls
