"""Profiles a device for a search space: its kernels first, then whole subnets, then the predictor.

Everything measured is in the store as soon as it is measured; the next run takes what is there and
goes on with what is missing, so an interruption loses at most the batch under way.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bignas.compile.codegen import code_hash
from bignas.compile.fusion import choose_kernels, kernel_options
from bignas.compile.objects import ObjectCache
from bignas.compile.workload import workload_of, workloads
from bignas.device_db.errors import MeasurementError
from bignas.device_db.records import Device, Layout, Workload
from bignas.device_db.store import Store
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.recording import Recorder
from bignas.latency.subnets import (
    measure_subnets,
    measured_subnets,
    spread_sample,
    typical_weights_bytes,
)
from bignas.latency.tuned import kernel_table, tuned_kernels
from bignas.latency.tuning import ensure_networks_tuned, tune_missing
from bignas.supernet.space import Architecture, SearchSpace, StageChoice

__all__ = ["ProfileProgress", "ProfileSummary", "fit_predictor", "profile_space", "space_workloads"]

KERNEL_SHARE = 0.75  # of the time, at most; the rest goes to whole subnets
SUBNET_BATCH = 10
DEFAULT_SUBNETS = 80


@dataclass(frozen=True, slots=True)
class ProfileProgress:
    """Where profiling stands: the phase, what is done of it, rejected groups, seconds left."""

    phase: str
    done: int
    total: int
    rejected: int
    eta_seconds: float


@dataclass(frozen=True, slots=True)
class ProfileSummary:
    """What is in the store for this space and device after profiling."""

    kernels: int
    kernels_of_space: int
    subnets: int
    seconds: float


def space_workloads(space: SearchSpace) -> list[Workload]:
    """Return every kernel that an architecture of the space can be built from.

    First come those that are used as long as nothing else is known, the most frequent in random
    architectures first; then the layers that fused blocks stand for, with which those compete.
    The count grows with the sum of the stages' options, not with the number of architectures.
    """
    random = np.random.default_rng(0)
    counts: dict[Workload, int] = {}
    for _ in range(500):
        for workload in choose_kernels(workloads(space, space.sample(random)), {}):
            counts[workload] = counts.get(workload, 0) + 1
    options: dict[Workload, None] = {}
    for layers in _enumerate(space):
        for workload in choose_kernels(layers, {}):
            counts.setdefault(workload, 0)
        options.update(dict.fromkeys(kernel_options(layers)))
    rest = [one for one in options if one not in counts]
    return [*sorted(counts, key=lambda one: -counts[one]), *rest]


def _enumerate(space: SearchSpace) -> list[tuple[Workload, ...]]:
    """Return the layers of every stem, every stage and every tail of the space."""
    found: dict[tuple[Workload, ...], None] = {}
    for resolution in space.resolutions:
        previous = space.stem_channels
        size = -(-resolution // space.stem_stride)
        for index, stage in enumerate(space.stages):
            for in_channels in previous:
                for choice in _choices(space, index):
                    layers = space.stage_layers(index, in_channels, size, choice)
                    found[tuple(workload_of(layer) for layer in layers)] = None
            size = -(-size // stage.stride)
            previous = stage.channels
    first = space.smallest()
    for resolution in space.resolutions:
        for stem in space.stem_channels:
            for last in space.stages[-1].channels:
                for head in space.head_channels:
                    stages = (*first.stages[:-1], _with_channels(first.stages[-1], last))
                    layers = space.layers(Architecture(resolution, stem, stages, head))
                    found[(workload_of(layers[0], Layout.NCHW),)] = None
                    found[tuple(workload_of(layer) for layer in layers[-3:])] = None
    return list(found)


def _choices(space: SearchSpace, index: int) -> list[StageChoice]:
    stage = space.stages[index]
    return [
        StageChoice(channels, max(stage.depths), kernel, expand)
        for channels in stage.channels
        for kernel in stage.kernels
        for expand in stage.expands
    ]


def _with_channels(choice: StageChoice, channels: int) -> StageChoice:
    return StageChoice(channels, choice.depth, choice.kernel, choice.expand)


def profile_space(
    space: SearchSpace,
    device: Device,
    store: Store,
    cache: ObjectCache,
    minutes: float,
    progress: Callable[[ProfileProgress], None] | None = None,
    subnets: int = DEFAULT_SUBNETS,
) -> ProfileSummary:
    """Measure kernels, then subnets, until all are there or the time is up.

    Raises:
        MeasurementError: measuring is impossible on this machine.
        ToolchainError: the C compiler is missing or fails.
    """
    start = time.monotonic()
    wanted = space_workloads(space)
    kernel_deadline = start + minutes * 60 * KERNEL_SHARE
    weights_bytes = typical_weights_bytes(space)
    _tune(wanted, device, store, cache, kernel_deadline, progress, weights_bytes)
    deadline = start + minutes * 60
    _measure_more(space, device, store, cache, subnets, deadline, progress)
    known = set(tuned_kernels(store, device.name))
    return ProfileSummary(
        kernels=len(known.intersection(wanted)),
        kernels_of_space=len(wanted),
        subnets=len(measured_subnets(store, device.name, space, code_hash())),
        seconds=time.monotonic() - start,
    )


def _tune(
    wanted: list[Workload],
    device: Device,
    store: Store,
    cache: ObjectCache,
    deadline: float,
    progress: Callable[[ProfileProgress], None] | None,
    weights_bytes: int,
) -> None:
    start = time.monotonic()

    def report(done: int, total: int, rejected: int) -> bool:
        now = time.monotonic()
        left = (now - start) / done * (total - done)
        if progress is not None:
            eta = min(left, max(0.0, deadline - now))
            progress(ProfileProgress("kernels", done, total, rejected, eta))
        return now < deadline

    known = set(tuned_kernels(store, device.name))
    tune_missing(wanted, device, store, cache, known, report, weights_bytes)


def _measure_more(
    space: SearchSpace,
    device: Device,
    store: Store,
    cache: ObjectCache,
    wanted: int,
    deadline: float,
    progress: Callable[[ProfileProgress], None] | None,
) -> None:
    """Measure subnets until there are `wanted` ones; the first batch is measured in any case.

    Kernels of theirs that the table still lacks are tuned first.
    """
    there = measured_subnets(store, device.name, space, code_hash())
    done = {architecture for architecture, _ in there}
    random = np.random.default_rng(len(there))
    recorder = Recorder(device.name)
    spread = spread_sample(space, max(wanted, SUBNET_BATCH), random)
    pool = [one for one in spread if one not in done]
    pool = [pool[int(index)] for index in random.permutation(len(pool))]
    pool = pool[: max(0, wanted - len(done))]
    start = time.monotonic()
    for first in range(0, len(pool), SUBNET_BATCH):
        if first and time.monotonic() > deadline:
            return
        batch = pool[first : first + SUBNET_BATCH]
        layers = [workloads(space, architecture) for architecture in batch]
        kernels = ensure_networks_tuned(
            layers, device, store, cache, weights_bytes=typical_weights_bytes(space)
        )
        records = measure_subnets(space, batch, kernels, device, cache, recorder)
        store.add_measurements(records)
        if all(not one.ok for one in records):
            raise MeasurementError(f"no subnet can be measured: {records[0].error}")
        if progress is not None:
            count = first + len(batch)
            left = (time.monotonic() - start) / count * (len(pool) - count)
            progress(ProfileProgress("subnets", count, len(pool), 0, left))


def fit_predictor(
    space: SearchSpace, device: Device, store: Store, confidence: float = 0.9
) -> LatencyPredictor:
    """Train the latency predictor of a space on all that the store holds for a device.

    Raises:
        MeasurementError: no kernel of the device has been measured.
    """
    table = kernel_table(store, device.name)
    if not len(table):
        raise MeasurementError(
            f"nothing is measured on {device.name} yet;"
            f" run `bignas profile SPACE --device {device.name}`"
        )
    networks = measured_subnets(store, device.name, space, code_hash())
    return LatencyPredictor.fit(space, table, networks, confidence)
