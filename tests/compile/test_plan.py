"""The memory plan: values that are needed at the same time never share memory."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bignas.compile.child_graph import graph_with_random_weights
from bignas.compile.graph import INPUT, KernelCall, KernelGraph
from bignas.compile.plan import ALIGNMENT, make_plan
from bignas.compile.schedule import Schedule
from bignas.device_db.workload import Operator, Workload
from bignas.supernet.spaces import load_space
from tests.compile.networks import CLIPPED, SQUEEZE, space_from

CALL = re.compile(r"\s+bignas_k_\w+\((.+?)\);")


def calls_of(source: str) -> list[list[str]]:
    """Return the pointers of each kernel call: input, weights, bias, other, output."""
    return [match[1].split(", ")[:5] for match in map(CALL.match, source.splitlines()) if match]


def offset(argument: str, base: str) -> int | None:
    """Return the offset of an argument such as `m + 64`, or nothing for another base or null."""
    start, plus, number = argument.partition(" + ")
    return int(number) if plus and start == base else None


def check_plan(graph: KernelGraph) -> None:
    plan = make_plan(graph, [Schedule()] * len(graph.calls), lanes=4)
    arguments = calls_of(plan.source)
    assert len(arguments) == len(graph.calls)
    place: dict[str, int] = {}
    size: dict[str, int] = {}
    written: dict[str, int] = {}
    last_read: dict[str, int] = {}
    for index, (call, (source, _, _, other, output)) in enumerate(
        zip(graph.calls, arguments, strict=True)
    ):
        assert isinstance(call, KernelCall)
        for name, argument in ((call.input, source), (call.other, other)):
            if name is not None and name != INPUT:
                assert offset(argument, "m") == place[name]
                last_read[name] = index
        start = offset(output, "m")
        assert start is not None
        assert start % ALIGNMENT == 0
        one = call.workload
        place[call.output] = start
        size[call.output] = one.out_height * one.out_width * one.out_channels
        written[call.output] = last_read[call.output] = index
    last_read[graph.calls[-1].output] = len(graph.calls)
    names = list(place)
    for index, first in enumerate(names):
        assert place[first] + size[first] <= plan.workspace_bytes // 4
        for second in names[index + 1 :]:
            alive_together = written[second] <= last_read[first]
            apart = (
                place[first] + size[first] <= place[second]
                or place[second] + size[second] <= place[first]
            )
            assert apart or not alive_together, (first, second)
    padded = sum(-(-one // ALIGNMENT) * ALIGNMENT for one in size.values())
    assert plan.workspace_bytes <= padded * 4


@st.composite
def chains(draw: st.DrawFn) -> KernelGraph:
    """Return a graph of calls with random sizes whose operands are any earlier values."""
    calls: list[KernelCall] = []
    names = [INPUT]
    for index in range(draw(st.integers(1, 12))):
        channels, height = draw(st.integers(1, 40)), draw(st.integers(1, 4))
        workload = Workload(Operator.SCALE, height, 1, channels, channels)
        other = draw(st.sampled_from(names))
        calls.append(
            KernelCall(
                workload,
                input=draw(st.sampled_from(names)),
                output=f"value{index}",
                other=None if other == INPUT else other,
                weights=None,
                bias=np.zeros(channels, np.float32),
            )
        )
        names.append(f"value{index}")
    return KernelGraph(tuple(calls), (3, 4, 4), 1)


@settings(deadline=None)
@given(graph=chains())
def test_values_needed_together_do_not_overlap(graph: KernelGraph) -> None:
    check_plan(graph)


@pytest.mark.parametrize("seed", range(6))
def test_values_of_networks_do_not_overlap(seed: int, tmp_path: Path) -> None:
    for space in (
        load_space("cifar"),
        space_from(SQUEEZE, tmp_path),
        space_from(CLIPPED, tmp_path),
    ):
        architecture = space.sample(np.random.default_rng(seed))
        check_plan(graph_with_random_weights(space, architecture))


def test_a_chain_needs_two_places_only() -> None:
    workload = Workload(Operator.SCALE, 4, 4, 16, 16)
    names = [INPUT, *(f"value{index}" for index in range(9))]
    calls = tuple(
        KernelCall(workload, before, after, None, None, np.zeros(16, np.float32))
        for before, after in pairwise(names)
    )
    plan = make_plan(KernelGraph(calls, (16, 4, 4), 256), [Schedule()] * 9, lanes=4)
    assert plan.workspace_bytes == 2 * 256 * 4


def test_weights_and_biases_are_aligned_and_where_the_source_says() -> None:
    space = load_space("cifar")
    graph = graph_with_random_weights(space, space.smallest(), seed=3)
    plan = make_plan(graph, [Schedule()] * len(graph.calls), lanes=4)
    block = np.frombuffer(plan.weights, np.float32)
    ends = [0]
    for call, (_, weights, bias, *_) in zip(graph.calls, calls_of(plan.source), strict=True):
        assert isinstance(call, KernelCall)
        if call.weights is None:
            assert (weights, bias) == ("0", "0")
            continue
        for argument, values in ((weights, call.weights), (bias, call.bias)):
            start = offset(argument, "w")
            assert start is not None
            assert start % ALIGNMENT == 0
            assert start >= ends[-1]
            stored = block[start : start + values.size]
            assert np.array_equal(np.sort(stored), np.sort(values.ravel()))
            ends.append(start + values.size)
    assert ends[-1] <= block.size
