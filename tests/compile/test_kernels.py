"""Every kernel, with every schedule that may be chosen, gives torch's numbers."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bignas.compile.codegen import build_object
from bignas.compile.kernel_identity import code_hash, symbol_of
from bignas.compile.machine_code import ARRAY_ALIGNMENT
from bignas.compile.objects import ObjectCache
from bignas.compile.packing import count_read, pack_weights
from bignas.compile.schedule import (
    MAX_CANDIDATES,
    Schedule,
    Split,
    candidates,
    column_groups,
    task_count,
    vector_chunks,
)
from bignas.compile.winograd import (
    MOST_STACK_BYTES,
    SIDES,
    chunks_of,
    stack_bytes,
)
from bignas.device_db.errors import InputError, ModelError, TargetError
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.target import Target
from bignas.device_db.workload import Activation, Layout, Operator, Workload
from tests.compile.reference import Kernels, Operands, relative_error

TARGETS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
TOLERANCE = 1e-5
CHANNELS = (3, 10, 24, 40, 72)
SIZES = (7, 13, 14)


def usable_target(name: str) -> Target:
    """Return a preset, or skip the test on a machine that cannot run its code."""
    here, target = probe_local().target, PRESETS[name]
    if here.architecture is not target.architecture or here.vector_lanes < target.vector_lanes:
        pytest.skip(f"this processor ({here.cpu}) does not run {name} code")
    return target


def cycle(count: int) -> list[tuple[int, int, int, Activation, bool]]:
    """Return `count` mixtures (height, width, channels, activation, residual) of all options.

    Neighbours differ in everything; periods of the options have no common factor, so that different
    ones meet.
    """
    activations = list(Activation)
    return [
        (
            SIZES[index % 3],
            SIZES[(index + index // 3 + 1) % 3],
            CHANNELS[(index + index // 5) % 5],
            activations[index % len(activations)],
            index % 2 == 1,
        )
        for index in range(count)
    ]


def workloads_of(operator: Operator, count: int) -> list[Workload]:
    result = []
    for index, (height, width, channels, activation, residual) in enumerate(cycle(count)):
        others = CHANNELS[(index * 3 + 1) % 5]
        kernel = (3, 5, 3, 7, 5, 3, 3)[index % 7]
        stride = 1 + (index // 2) % 2
        match operator:
            case Operator.POINTWISE:
                size = (height, width) if index % 4 else (1, 1)
                one = Workload(
                    operator, *size, others, channels, activation=activation, residual=residual
                )
            case Operator.CONV if index % 4 == 1:  # the downsampling shortcut of residual networks
                one = Workload(
                    operator, height, width, others, channels, 1, 2, 0, activation, residual
                )
            case Operator.CONV:
                layout = Layout.NCHW if index % 4 < 2 else Layout.NHWC
                one = Workload(
                    operator, height, width, (1, 3, 4, 10)[index % 4], channels, kernel, stride,
                    kernel // 2, activation, residual, layout,
                )  # fmt: skip
            case Operator.DEPTHWISE:
                one = Workload(
                    operator, height, width, channels, channels, kernel, stride,
                    0 if index % 5 == 4 else kernel // 2, activation, residual,
                )  # fmt: skip
            case Operator.INVERTED_BOTTLENECK:
                hidden = channels if index % 3 == 2 else 2 * channels
                keeps = stride == 1 and residual
                one = Workload(
                    operator, height, width, channels, channels if keeps else others, kernel,
                    stride, 0 if index % 5 == 4 and not keeps else kernel // 2, activation, keeps,
                    hidden_channels=hidden,
                )  # fmt: skip
            case Operator.MAX_POOL | Operator.AVERAGE_POOL:
                one = Workload(
                    operator, height, width, channels, channels, (3, 2, 3, 7, 5)[index % 5], stride,
                    index % 2, activation,
                )  # fmt: skip
            case _:
                one = Workload(operator, height, width, channels, channels, activation=activation)
        result.append(one)
    return result


def check_all(
    workloads: Sequence[Workload],
    target: Target,
    folder: Path,
    most: int = MAX_CANDIDATES,
    threads: int = 1,
) -> None:
    """Compare the first `most` candidates of each workload with torch."""
    chosen = [(one, s) for one in workloads for s in candidates(one, target, threads)[:most]]
    kernels = Kernels(chosen, ObjectCache(target), folder)
    operands = {one: Operands(one) for one in workloads}
    expected = {one: operands[one].expected() for one in workloads}
    for workload, schedule in chosen:
        result = kernels.run(workload, schedule, operands[workload], threads)
        error = relative_error(result, expected[workload])
        assert error <= TOLERANCE, f"{workload.key} {schedule} on {target.cpu}"


@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("name", TARGETS)
def test_candidates_give_the_numbers_of_torch(
    operator: Operator, name: str, tmp_path: Path
) -> None:
    check_all(workloads_of(operator, 7), usable_target(name), tmp_path)


@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("threads", [2, 3])
def test_shares_of_threads_give_the_numbers_of_torch(
    operator: Operator, threads: int, tmp_path: Path
) -> None:
    target = probe_local().target
    check_all(workloads_of(operator, 7), target, tmp_path, most=2, threads=threads)


WINOGRAD = [
    Workload(Operator.CONV, height, width, inner, outer, 3, 1, padding, activation, residual)
    for height, width, inner, outer, padding, activation, residual in (
        (8, 8, 16, 32, 1, Activation.RELU, False),
        (7, 7, 24, 40, 1, Activation.NONE, True),
        (5, 9, 10, 17, 1, Activation.HARD_SWISH, False),
        (14, 13, 20, 33, 1, Activation.RELU, True),
        (9, 9, 128, 16, 0, Activation.NONE, False),
        (11, 70, 8, 9, 1, Activation.NONE, False),  # rows of tiles in pieces
    )
]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", TARGETS)
def test_winograd_gives_the_numbers_of_torch(name: str, threads: int, tmp_path: Path) -> None:
    """Odd sizes, where outputs of the last tiles lie outside the image, included."""
    target = usable_target(name)
    for one in WINOGRAD:
        sides = {schedule.winograd_side for schedule in candidates(one, target, threads)}
        assert sides == {0, *SIDES}
    check_all(WINOGRAD, target, tmp_path, threads=threads)


@given(st.integers(3, 70), st.integers(3, 70), st.sampled_from(SIDES), st.integers(1, 16))
def test_chunks_hold_every_tile_once(height: int, width: int, side: int, most: int) -> None:
    one = Workload(Operator.CONV, height, width, 8, 8, 3, 1, 1)
    chunks = chunks_of(one, side, most)
    rows = [chunks.rows] * chunks.full + ([chunks.rest] if chunks.rest else [])
    assert sum(rows) == -(-height // side)
    assert len(rows) == chunks.count
    columns = [column for start, size in chunks.pieces for column in range(start, start + size)]
    assert columns == list(range(chunks.across))
    assert chunks.across == -(-width // side)
    assert chunks.tiles <= most
    assert height % side == 0 or chunks.rest  # what may reach outside stands apart


@pytest.mark.parametrize("side", SIDES)
def test_weights_are_transformed_once(side: int, tmp_path: Path) -> None:
    """Of the nine weights of a window the first and the last stand in the corners of the patch."""
    one = Workload(Operator.CONV, 8, 8, 5, 19, 3, 1, 1)
    schedule = Schedule(2, 1, winograd_side=side)
    target = probe_local().target
    kernels = Kernels([], ObjectCache(target), tmp_path)
    weights = np.random.default_rng(0).standard_normal((19, 5, 3, 3)).astype(np.float32)
    packed = pack_weights(one, schedule, target.vector_lanes, weights)
    read = kernels.transformed(one, schedule, packed, times=2)
    assert np.isfinite(read).all()
    first = 0
    for start, width in column_groups(19, target.vector_lanes, 1):
        patches = read[first : first + 5 * width * (side + 2) ** 2]
        patches = patches.reshape(side + 2, side + 2, 5, width)
        first += patches.size
        shaped = weights[start : start + width].transpose(2, 3, 1, 0)
        scale = {2: 1.0, 4: 1 / 16}[side]
        assert np.allclose(patches[0, 0], shaped[0, 0] * scale)
        assert np.allclose(patches[-1, -1], shaped[-1, -1])
    assert first == read.size


def test_stacks_are_small_and_packed_weights_fit() -> None:
    for size, inner, outer in ((7, 512, 512), (14, 256, 256), (56, 64, 64), (8, 96, 288)):
        one = Workload(Operator.CONV, size, size, inner, outer, 3, 1, 1)
        weights = np.zeros((outer, inner, 3, 3), np.float32)
        for name in ("x86-64-v2", "x86-64-v4"):
            target = PRESETS[name]
            for schedule in candidates(one, target):
                packed = pack_weights(one, schedule, target.vector_lanes, weights)
                assert packed.size == one.weight_count <= count_read(one, schedule)
                if schedule.winograd_side:
                    width = schedule.vectors * target.vector_lanes
                    stack = stack_bytes(one, schedule.winograd_side, schedule.tile, width)
                    assert stack <= MOST_STACK_BYTES


@pytest.mark.parametrize("split", [Split.PIXELS, Split.CHANNELS])
def test_ranges_of_tasks_cover_the_output_once(split: Split, tmp_path: Path) -> None:
    """Every task computes its own slice of the output and nothing of any other."""
    one = Workload(Operator.POINTWISE, 5, 5, 7, 40)
    schedule = Schedule(4, 1, split=split)
    target = probe_local().target
    kernels = Kernels([(one, schedule)], ObjectCache(target), tmp_path)
    tasks = task_count(one, schedule, target.vector_lanes)
    assert tasks > 1
    operands = Operands(one)
    for threads in (1, tasks, tasks + 3):  # with more threads than tasks, some have none
        result = kernels.run(one, schedule, operands, threads)
        assert relative_error(result, operands.expected()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("name", TARGETS)
def test_all_combinations_give_the_numbers_of_torch(
    operator: Operator, name: str, tmp_path: Path
) -> None:
    check_all(workloads_of(operator, 70), usable_target(name), tmp_path, most=2)


@st.composite
def small_workloads(draw: st.DrawFn) -> Workload:
    operator = draw(st.sampled_from(list(Operator)))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    channels = draw(st.integers(1, 40))
    activation = draw(st.sampled_from(list(Activation)))
    if operator in (Operator.GLOBAL_POOL, Operator.SCALE):
        return Workload(operator, height, width, channels, channels, activation=activation)
    if operator is Operator.INVERTED_BOTTLENECK:
        kernel = draw(st.integers(1, min(5, height, width)))
        others = draw(st.integers(1, 12))
        return Workload(
            operator, height, width, others, others, kernel, draw(st.integers(1, 3)),
            draw(st.integers(0, kernel // 2)), activation, hidden_channels=channels,
        )  # fmt: skip
    if operator in (Operator.MAX_POOL, Operator.AVERAGE_POOL):
        kernel = draw(st.integers(1, min(5, height, width)))
        padding = draw(st.integers(0, kernel - 1))
        stride = draw(st.integers(1, 3))
        return Workload(
            operator, height, width, channels, channels, kernel, stride, padding, activation
        )
    residual = draw(st.booleans())
    others = channels if operator is Operator.DEPTHWISE else draw(st.integers(1, 12))
    if operator is Operator.POINTWISE:
        return Workload(
            operator, height, width, others, channels, activation=activation, residual=residual
        )
    kernel = draw(st.integers(1, min(5, height, width)))
    return Workload(
        operator, height, width, others, channels, kernel, draw(st.integers(1, 3)),
        draw(st.integers(0, kernel // 2)), activation, residual,
    )  # fmt: skip


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(workload=small_workloads(), data=st.data())
def test_any_small_workload_gives_the_numbers_of_torch(
    workload: Workload, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = probe_local().target
    schedule = data.draw(st.sampled_from(candidates(workload, target)))
    folder = tmp_path_factory.mktemp("kernels")
    kernels = Kernels([(workload, schedule)], ObjectCache(target), folder)
    operands = Operands(workload, seed=1)
    result = kernels.run(workload, schedule, operands)
    assert np.abs(result - operands.expected()).max() <= 1e-5 * max(
        1.0, np.abs(operands.expected()).max()
    )


@pytest.mark.parametrize("activation", [Activation.SWISH, Activation.SIGMOID])
def test_exponentials_are_sound_far_from_zero(activation: Activation, tmp_path: Path) -> None:
    target = probe_local().target
    workload = Workload(Operator.SCALE, 1, 1, 32, 32, activation=activation)
    schedule = candidates(workload, target)[0]
    kernels = Kernels([(workload, schedule)], ObjectCache(target), tmp_path)
    operands = Operands(workload)
    operands.input = np.linspace(-1000, 1000, 32, dtype=np.float32).reshape(32, 1, 1)
    operands.other = np.ones((32, 1, 1), np.float32)
    result = kernels.run(workload, schedule, operands)
    np.testing.assert_allclose(result, operands.expected(), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_candidates_are_few_unique_and_fit_the_registers(operator: Operator, name: str) -> None:
    target = PRESETS[name]
    for workload in workloads_of(operator, 60):
        found = candidates(workload, target)
        assert 1 <= len(found) <= MAX_CANDIDATES
        assert len(set(found)) == len(found)
        for schedule in found:
            assert schedule.tile * schedule.vectors < target.vector_registers
            assert Schedule.from_text(schedule.to_text()) == schedule


@given(
    channels=st.integers(1, 3000), lanes=st.sampled_from([1, 4, 8, 16]), vectors=st.integers(1, 8)
)
def test_channels_are_covered_exactly_once(channels: int, lanes: int, vectors: int) -> None:
    groups = column_groups(channels, lanes, vectors)
    covered = [
        start + offset + lane
        for start, width in groups
        for offset, size in vector_chunks(width, lanes)
        for lane in range(size)
    ]
    assert covered == list(range(channels))
    assert all(width <= lanes * vectors for _, width in groups)
    sizes = [size for _, size in vector_chunks(channels, lanes)]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) <= {2**power for power in range(5)}


@pytest.mark.parametrize("operator", [Operator.CONV, Operator.POINTWISE, Operator.DEPTHWISE])
def test_packing_keeps_every_weight_once(operator: Operator) -> None:
    for workload in workloads_of(operator, 12):
        one = workload
        inner = one.weight_count // (one.out_channels * one.kernel**2)
        weights = np.arange(one.weight_count, dtype=np.float32)
        shaped = weights.reshape(one.out_channels, inner, one.kernel, one.kernel)
        for schedule in candidates(workload, PRESETS["x86-64-v3"]):
            packed = pack_weights(workload, schedule, 8, shaped)
            assert packed.dtype == np.float32
            assert packed.ndim == 1
            assert np.array_equal(np.sort(packed), weights)


@pytest.mark.parametrize(
    "operator",
    [Operator.MAX_POOL, Operator.AVERAGE_POOL, Operator.GLOBAL_POOL, Operator.SCALE],
)
def test_operators_without_weights_pack_nothing(operator: Operator) -> None:
    workload = Workload(operator, 7, 7, 24, 24)
    assert pack_weights(workload, Schedule(), 16, np.zeros(0)).size == 0


@pytest.mark.parametrize("name", ["x86-64-v4", "neoverse-n1", "riscv64-v"])
def test_builds_are_byte_identical(name: str) -> None:
    for operator in Operator:
        workload = workloads_of(operator, 3)[-1]
        schedule = candidates(workload, PRESETS[name])[0]
        first, second = (build_object(workload, schedule, PRESETS[name]) for _ in range(2))
        assert first == second
        assert symbol_of(workload, schedule).encode() in first


def test_arrays_on_the_stack_start_at_lines() -> None:
    """Winograd's kernels have arrays, and align the stack pointer; other dense ones have none."""
    aligning = b"\x48\x83\xe4" + (256 - ARRAY_ALIGNMENT).to_bytes()  # and $-64, %rsp
    workload, target = Workload(Operator.CONV, 14, 14, 64, 64, 3, 1, 1), PRESETS["x86-64-v3"]
    sides = set()
    for schedule in candidates(workload, target):
        built = build_object(workload, schedule, target)
        assert (aligning in built) is (schedule.winograd_side > 0)
        sides.add(schedule.winograd_side)
    assert len(sides) > 1


def test_symbols_are_unique() -> None:
    pairs = {
        (one, Schedule(tile, vectors))
        for operator in Operator
        for one in workloads_of(operator, 40)
        for tile, vectors in itertools.product((1, 2, 8), (1, 4))
    }
    assert len({symbol_of(*pair) for pair in pairs}) == len(pairs)


def test_the_cache_builds_once_and_gives_back_the_same_file(tmp_path: Path) -> None:
    target = probe_local().target
    workload = Workload(Operator.SCALE, 2, 2, 16, 16)
    cache = ObjectCache(target, tmp_path)
    path = cache.path(workload, Schedule())
    before = path.stat().st_mtime_ns
    assert code_hash() in path.parent.name
    assert target.digest in path.parent.name
    assert ObjectCache(target, tmp_path).path(workload, Schedule()) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "workload",
    [
        Workload(Operator.POINTWISE, 8, 8, 16, 16, stride=2),
        Workload(Operator.DEPTHWISE, 8, 8, 16, 16, 3, 1, 1, input_layout=Layout.NCHW),
    ],
)
def test_workloads_that_no_kernel_computes_are_refused(workload: Workload) -> None:
    with pytest.raises(ModelError, match="no kernel for"):
        build_object(workload, Schedule(), PRESETS["x86-64-v3"])


def test_a_target_that_the_compiler_does_not_know_is_an_error() -> None:
    target = Target("x86_64-linux-gnu", "no-such-processor")
    workload = Workload(Operator.SCALE, 2, 2, 16, 16)
    with pytest.raises(TargetError, match="no-such-processor"):
        build_object(workload, Schedule(), target)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"tile":0}', '{"tile":"a"}', '{"other":1}'])
def test_malformed_schedules_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        Schedule.from_text(text)
