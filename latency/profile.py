"""Profiles a device for a search space: kernels and whole subnets, then the predictor.

Everything measured is in the store as soon as it is measured; the next run takes what is there and
goes on with what is missing, so an interruption loses at most the batch under way.

When everything is there, everything is measured twice more. On a shared machine whole minutes are
slower than others, and no sentinel sees all of it; where its pages lie in the caches is drawn anew
for each process. What three measurements do not agree on is measured again, until three do. Beyond
the usual number of subnets that comes before further ones: where the time ends with them, few are
left with one measurement.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from bignas.compile.fusion import choose_kernels, kernel_options
from bignas.compile.objects import ObjectCache
from bignas.compile.workload import workload_of, workloads
from bignas.device_db.device import Device
from bignas.device_db.errors import InputError, MeasurementError
from bignas.device_db.files import cache_folder, locked
from bignas.device_db.store import Store
from bignas.device_db.workload import Layout, Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.held_out import held_out_error
from bignas.latency.in_network_readings import in_network_readings
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import agreeing, agreeing_mean
from bignas.latency.profile_plan import SUBNET_BATCH, SUBNET_COST, Batch, ProfilePlanner
from bignas.latency.subnets import (
    measure_subnets,
    subnet_measurements,
    typical_weights_bytes,
)
from bignas.latency.tuned import failed_kernels, tuned_kernels
from bignas.latency.tuning import Tuner
from bignas.supernet.architecture import Architecture, StageChoice
from bignas.supernet.space import SearchSpace

__all__ = [
    "Phase",
    "ProfileProgress",
    "ProfileSummary",
    "StopReason",
    "profile_space",
    "space_workloads",
]

DEFAULT_SUBNETS = 80
LOCK = "profiling.lock"  # in the cache folder
PATIENCE_SECONDS = 60.0  # that the last measurements wait for another profiler
FIRST_SHARE = 0.25  # of the time, is for the first subnets if there are none by then
FIRST_KERNELS = 72  # with so many a target error is worth looking at
CHECKS = 3  # measurements of everything that have to agree
MOST_CHECKS = 5  # measurements, when they do not
CHECK_BATCH = 200  # kernels that are measured once more in one process
ERROR_STEP = 1.3  # growth of what is measured, after which the error is estimated again


class Phase(StrEnum):
    """What is being measured."""

    KERNELS = "kernels"
    SUBNETS = "subnets"
    CHECKS = "checks"


class StopReason(StrEnum):
    """Why profiling ended."""

    COMPLETE = "complete"
    TARGET = "target error reached"
    TIME = "time is up"


@dataclass(frozen=True, slots=True)
class ProfileProgress:
    """Where profiling stands: the phase, what is done of it, rejected groups, seconds left.

    `held_out_error` is a fraction; None as long as too few subnets were measured to tell.
    """

    phase: Phase
    done: int
    total: int
    rejected: int
    eta_seconds: float
    held_out_error: float | None = None


@dataclass(frozen=True, slots=True)
class ProfileSummary:
    """What is in the store for this space and device after profiling, and why it ended.

    `held_out_error` and `target_error` are fractions; see `bignas.latency.held_out`.
    """

    kernels: int
    kernels_of_space: int
    subnets: int
    seconds: float
    rejected: int
    held_out_error: float | None
    target_error: float | None
    stopped: StopReason


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
    target_error: float | None = None,
    sources: Sequence[KernelTable] = (),
) -> ProfileSummary:
    """Measure kernels and subnets until all are there, the time is up or the error is low enough.

    What comes next is chosen batch by batch by what the store holds (`ProfilePlanner`). In any case
    there is a first batch of kernels and of subnets in the end. Once everything is measured, it is
    measured again until three measurements agree, as far as the time lasts. `target_error` is a
    fraction, held against `held_out_error`, which tables of other devices (`sources`) lower while
    kernels are missing. Profilers that share a cache folder take turns, batch by batch: they
    neither disturb each other nor measure anything twice.

    Raises:
        InputError: the target is no positive number, or the minutes are no number.
        MeasurementError: measuring is impossible on this machine.
        OutputError: the cache folder cannot be written.
        ToolchainError: the C compiler is missing or fails.
    """
    if target_error is not None and not (math.isfinite(target_error) and target_error > 0):
        raise InputError(f"the target error must be above 0, not {target_error:g}")
    if math.isnan(minutes) or minutes < 0:
        raise InputError(f"the minutes must be a number of at least 0, not {minutes:g}")
    with Tuner(device, store, cache, typical_weights_bytes(space)) as tuner:
        run = _Profile(space, tuner, minutes, progress, subnets, target_error, sources)
        return run.run()


class _Profile:
    """One run of profiling. What it measures depends on the store and on the time left alone."""

    def __init__(
        self,
        space: SearchSpace,
        tuner: Tuner,
        minutes: float,
        progress: Callable[[ProfileProgress], None] | None,
        subnets: int,
        target_error: float | None,
        sources: Sequence[KernelTable],
    ) -> None:
        self._space, self._tuner = space, tuner
        self._progress, self._target_error = progress, target_error
        self._sources = sources
        self._start = time.monotonic()
        self._seconds = minutes * 60
        self._wanted = space_workloads(space)
        self._subnets = subnets
        self._planner = ProfilePlanner(space, self._wanted, subnets)
        self._lock = cache_folder() / LOCK
        self._tried: set[Workload] = set()
        self._given_up: set[Architecture] = set()  # measured by this run, with success or without
        self._checked: Counter[Workload | Architecture] = Counter()  # by this run, likewise
        self._rejected = 0
        self._error: float | None = None
        self._error_at = 0  # how much was measured when the error was estimated
        self._found = self._work(self._look())

    def run(self) -> ProfileSummary:
        """Measure batch by batch."""
        reason = self._measure_planned()
        if reason is StopReason.TIME:
            self._measure_first_subnets()
        state = self._look()
        if not state.networks:
            raise MeasurementError(f"no subnet of {self._space.name} can be measured")
        return ProfileSummary(
            kernels=len(state.table.keys() & set(self._wanted)),
            kernels_of_space=len(self._wanted),
            subnets=len(state.networks),
            seconds=time.monotonic() - self._start,
            rejected=self._rejected,
            held_out_error=self._estimate(state),
            target_error=self._target_error,
            stopped=reason,
        )

    def _measure_planned(self) -> StopReason:
        """Measure what is planned; begin no step that may take longer than is left, as one did."""
        started, longest_seconds = False, 0.0
        while True:
            with self._turn(self._left_seconds) as held:
                begin, state = time.monotonic(), self._look()
                late = self._left_seconds <= longest_seconds and (started or bool(state.table))
                if self._reached(state):
                    return StopReason.TARGET
                if late or not held:
                    return StopReason.TIME
                batch = self._next_batch(state)
                if batch.kernels or (batch.subnets and len(state.networks) < DEFAULT_SUBNETS):
                    self._take_step(batch)
                elif not self._check(state):
                    if not batch.subnets:
                        return StopReason.COMPLETE
                    self._take_step(batch)
                started, longest_seconds = True, max(longest_seconds, time.monotonic() - begin)

    def _next_batch(self, state: "_State") -> Batch:
        waits_for_error = self._target_error is not None and len(state.table) >= FIRST_KERNELS
        is_late = self._left_seconds < FIRST_SHARE * self._seconds
        if (waits_for_error or is_late) and (first := self._first_batch(state)):
            return first
        return self._planner.next_batch(
            state.table, state.networks.keys() | self._given_up, self._hopeless()
        )

    def _first_batch(self, state: "_State") -> Batch:
        """Return what subnets that a predictor and its error need lack, unless they are there."""
        count = min(self._subnets, SUBNET_BATCH) - len(state.networks)
        done = state.networks.keys() | self._given_up
        return self._planner.first_batch(state.table, done, max(0, count), self._hopeless())

    def _hopeless(self) -> set[Workload]:
        failed = failed_kernels(self._tuner.store, self._tuner.device.name)
        return self._tried.union(failed)

    def _measure_first_subnets(self) -> None:
        with self._turn(PATIENCE_SECONDS) as held:
            while held and (first := self._first_batch(self._look())):
                self._take_step(first)

    def _take_step(self, batch: Batch) -> None:
        """Measure and commit once. Then there is a new plan: an interruption changes nothing."""
        if batch.kernels:
            self._tried.update(batch.kernels)
            self._rejected += self._tuner.tune(batch.kernels)
            self._report(Phase.KERNELS)
            return
        self._measure_subnets(batch.subnets, probed=True)
        self._given_up.update(batch.subnets)
        self._report(Phase.SUBNETS)

    def _measure_subnets(self, architectures: Sequence[Architecture], *, probed: bool) -> None:
        """Measure subnets; those that are new with the kernels in them."""
        tuner = self._tuner
        records = measure_subnets(
            self._space,
            architectures,
            tuned_kernels(tuner.store, tuner.device.name),
            tuner.device,
            tuner.cache,
            tuner.recorder,
            probed=probed,
        )
        tuner.store.add_measurements(records)

    def _check(self, state: "_State") -> bool:
        """Measure some of what no three measurements agree on; False when there is nothing left."""
        kernels = [one for one in state.unchecked_kernels if self._checked[one] < MOST_CHECKS - 1]
        if kernels:
            chosen = kernels[:CHECK_BATCH]
            tuned = tuned_kernels(self._tuner.store, self._tuner.device.name)
            self._checked.update(chosen)
            self._rejected += self._tuner.check([(one, tuned[one].schedule) for one in chosen])
        else:
            subnets = [
                one for one in state.unchecked_subnets if self._checked[one] < MOST_CHECKS - 1
            ]
            if not subnets:
                return False
            self._checked.update(subnets[:SUBNET_BATCH])
            self._measure_subnets(subnets[:SUBNET_BATCH], probed=False)
        self._report_checks()
        return True

    # What is known

    def _look(self) -> "_State":
        store, device = self._tuner.store, self._tuner.device.name
        kernels = tuned_kernels(store, device)
        networks = subnet_measurements(store, device, self._space, evidence_hash())
        wanted = set(self._wanted)
        return _State(
            table={one: entry.latency_us for one, entry in kernels.items()},
            networks={one: agreeing_mean(medians_ms) for one, medians_ms in networks.items()},
            unchecked_kernels=tuple(
                one
                for one, entry in kernels.items()
                if _is_unchecked(entry.medians_us) and one in wanted
            ),
            unchecked_subnets=tuple(
                one for one, medians_ms in networks.items() if _is_unchecked(medians_ms)
            ),
        )

    def _reached(self, state: "_State") -> bool:
        """Return whether the error is low enough; estimate it anew when there is reason to.

        With a target that is after each batch, so that an interruption changes nothing.
        """
        count = len(state.table) + len(state.networks)
        if self._target_error is not None or count >= ERROR_STEP * self._error_at:
            self._error, self._error_at = self._estimate(state), count
        if self._target_error is None or self._error is None:
            return False
        return self._error <= self._target_error

    def _estimate(self, state: "_State") -> float | None:
        if not state.table:
            return None
        table = KernelTable(state.table, self._tuner.device.name, evidence_hash())
        weights = self._planner.weights(state.table)
        share = float(self._planner.estimated_shares(state.table).mean())
        networks = list(state.networks.items())
        store, device = self._tuner.store, self._tuner.device.name
        readings = in_network_readings(store, device, tuned_kernels(store, device))
        return held_out_error(self._space, table, networks, weights, share, self._sources, readings)

    # Time, turns and progress

    @property
    def _left_seconds(self) -> float:
        return self._start + self._seconds - time.monotonic()

    def _turn(self, seconds: float) -> AbstractContextManager[bool]:
        return locked(self._lock, max(0.0, seconds))

    def _work(self, state: "_State") -> tuple[int, int]:
        kernels = len(state.table.keys() & set(self._wanted))
        return kernels, len(state.networks)

    def _report_checks(self) -> None:
        if self._progress is None:
            return
        state = self._look()
        left = len(state.unchecked_kernels) + len(state.unchecked_subnets)
        total = len(state.table.keys() & set(self._wanted)) + len(state.networks)
        self._progress(
            ProfileProgress(Phase.CHECKS, total - left, total, self._rejected, 0.0, self._error)
        )

    def _report(self, phase: Phase) -> None:
        if self._progress is None:
            return
        kernels, subnets = self._work(self._look())
        totals = len(self._wanted), max(self._subnets, subnets)
        done = kernels - self._found[0] + SUBNET_COST * (subnets - self._found[1])
        left = totals[0] - kernels + SUBNET_COST * (totals[1] - subnets)
        eta = (time.monotonic() - self._start) * left / done if done else math.inf
        is_kernels = phase is Phase.KERNELS
        self._progress(
            ProfileProgress(
                phase=phase,
                done=kernels if is_kernels else subnets,
                total=totals[0] if is_kernels else totals[1],
                rejected=self._rejected,
                eta_seconds=max(0.0, min(eta, self._left_seconds)),
                held_out_error=self._error,
            )
        )


@dataclass(frozen=True, slots=True)
class _State:
    """What the store holds: microseconds of kernels, milliseconds of subnets.

    And those of which too few measurements agree.
    """

    table: dict[Workload, float]
    networks: dict[Architecture, float]
    unchecked_kernels: tuple[Workload, ...]
    unchecked_subnets: tuple[Architecture, ...]


def _is_unchecked(medians: Sequence[float]) -> bool:
    return len(medians) < MOST_CHECKS and len(agreeing(medians)) < CHECKS
