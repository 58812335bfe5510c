"""The race's networks, engines, share of the peak, worker loop and picture."""

import io
import itertools
import json
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from draw_race import draw
from engine_worker import FIRST_RUNS, MIN_WARM_RUNS, serve
from engines import ENGINES, NATIVE, OURS
from fma_peak import needed_macs, peak_gmacs
from interleave import WorkerError
from race_engines import differences
from race_models import Group, nearest_child, race_models

from bignas.device_db.errors import TargetError
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.workload import Operator, Workload
from bignas.supernet.spaces import load_space
from tests.benchmarks.entries import make_entry

PNG_SIZE = 16  # where a PNG file holds its width and height


@pytest.mark.parametrize(("macs", "resolution"), [(240_000_000, 192), (420_000_000, 224)])
def test_children_of_bignas_are_near_to_the_published_macs(macs: int, resolution: int) -> None:
    space = load_space("bignas")
    child = nearest_child(space, macs)
    space.check(child)
    assert child.resolution == resolution
    assert space.macs(child) == pytest.approx(macs, rel=0.01)
    assert nearest_child(space, macs) == child


def test_a_space_without_children_so_small_gives_its_smallest() -> None:
    space = load_space("cifar")
    assert nearest_child(space, 1).resolution == min(space.resolutions)
    assert space.macs(nearest_child(space, 1)) == space.macs(space.smallest())


def test_the_networks_of_the_race() -> None:
    models = race_models()
    groups = [model.group for model in models.values()]
    assert [groups.count(group) for group in Group] == [2, 1, 2, 10]
    assert list(models) == [model.name for model in models.values()]
    smallest = models["cifar_0"]
    image = torch.zeros(1, 3, smallest.resolution, smallest.resolution)
    assert smallest.build()(image).shape == (1, 10)


def test_every_engine_is_restricted_or_says_why_not() -> None:
    for name, engine in ENGINES.items():
        assert engine.left_out(NATIVE) is None, name
        assert bool(engine.restrictions) != bool(engine.unrestricted), name
        for target in engine.restrictions:
            assert engine.left_out(target) is None
            assert target in PRESETS
    assert ENGINES["mnn"].left_out("x86-64-v3") == ENGINES["mnn"].unrestricted


def test_an_engine_gets_its_threads_and_restriction_by_environment() -> None:
    variables = ENGINES["openvino"].environment_for("x86-64-v2", 2)
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert "ONEDNN_MAX_CPU_ISA" not in ENGINES["openvino"].environment_for(NATIVE, 2)


def test_outputs_that_differ_are_refused() -> None:
    ours = np.linspace(-2.0, 2.0, 5)
    errors = differences({OURS: ours, "mnn": ours + 1e-4})
    assert errors == pytest.approx({OURS: 0.0, "mnn": 1e-4})
    for wrong in (ours + 0.01, np.full(5, np.nan)):
        with pytest.raises(WorkerError, match="mnn and bignas disagree"):
            differences({OURS: ours, "mnn": wrong})


def test_a_worker_replies_with_a_sample_for_every_request() -> None:
    calls = itertools.count()
    replies = io.StringIO()
    serve(lambda: next(calls), iter(["\n"] * 3), replies)
    ready, *samples = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert len(samples) == 3
    assert all(sample["us"] > 0.0 for sample in samples)
    timed = ready["runs"] + max(MIN_WARM_RUNS, round(0.2 * ready["runs"]))
    assert next(calls) == 2 * FIRST_RUNS + 3 * timed


def brute_force_macs(workload: Workload) -> Iterator[int]:
    axis = range(workload.kernel)
    for y, x in itertools.product(range(workload.out_height), range(workload.out_width)):
        for dy, dx in itertools.product(axis, axis):
            row = y * workload.stride - workload.padding + dy
            column = x * workload.stride - workload.padding + dx
            yield 0 <= row < workload.height and 0 <= column < workload.width


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_needed_macs_leave_out_the_padding(kernel: int, stride: int) -> None:
    shape = (Operator.CONV, 5, 4, 3, 8, kernel, stride, kernel // 2)
    workload = Workload(*shape)
    assert needed_macs(workload) == sum(brute_force_macs(workload)) * 3 * 8
    assert (needed_macs(workload) == workload.macs) is (kernel == 1)


def test_the_peak_is_known_of_this_processor_and_of_no_other_family() -> None:
    target = probe_local().target
    assert peak_gmacs(target, [max(os.sched_getaffinity(0))], milliseconds=20) > 0.1
    with pytest.raises(TargetError, match="x86-64 only"):
        peak_gmacs(PRESETS["cortex-a72"], [0])


def test_the_picture_is_small_and_the_same_every_time() -> None:
    entries = [
        make_entry(name, {"bignas": 6.0 + index, "mnn": 10.0, "ncnn": 90.0}, threads=threads)
        for threads in (1, 2)
        for index, name in enumerate(("a", "b", "c"))
    ]
    picture = draw(entries)
    assert picture == draw(entries)
    width, height = struct.unpack_from(">II", picture, PNG_SIZE)
    assert width > height > 100
    assert len(picture) < 150_000
    assert draw(entries[:3]) != picture
