"""What profiling measures next: error against minutes, replayed on a complete profile.

    python benchmarks/profile_choice.py cifar --json --results OUT --picture docs/active.png

The store holds every kernel of the space and some hundred subnets. Of these a part, drawn anew for
each seed, is the test: what is predicted of them after so many seconds of measuring? Three ways to
choose are compared:

- chosen: what `bignas profile` does;
- random: kernels at random, and a quarter of the time random subnets;
- frequent first: the kernels that most random architectures have, for three quarters of the time,
  then random subnets (what `bignas profile` did before).

A subnet can be measured only when its kernels are; those that it lacks are measured before it.
Seconds of a kernel and of a subnet are those that the recorded profile has taken on average,
building included. Errors are medians over seeds. What counts at a time is what is finished by then.
"""

import argparse
import io
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from command import progress, run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bignas.compile.fusion import choose_kernels
from bignas.compile.workload import workloads
from bignas.device_db.errors import InputError
from bignas.device_db.files import write_atomically
from bignas.device_db.measurement import Subject
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.in_network_readings import InNetworkReadings, in_network_readings
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import DEFAULT_SUBNETS, space_workloads
from bignas.latency.profile_plan import Batch, ProfilePlanner
from bignas.latency.recording import space_label
from bignas.latency.subnets import measured_subnets
from bignas.latency.tuned import kernel_table, tuned_kernels
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space

SHARES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of a whole profile's time: compared
STEP = 0.01  # of it, between looks at the errors of what was chosen
KERNEL_TIME = 0.75  # share of the time, where subnets are not chosen
CHOSEN, RANDOM, FREQUENT = "chosen", "random", "frequent first"
COLORS = {CHOSEN: "#d62728", RANDOM: "#7f7f7f", FREQUENT: "#1f77b4"}
DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Recorded:
    """A complete profile, and what measuring costs."""

    space: SearchSpace
    table: KernelTable
    kernels: tuple[Workload, ...]
    networks: Mapping[Architecture, float]
    readings: InNetworkReadings
    kernel_seconds: float
    subnet_seconds: float

    @property
    def seconds(self) -> float:
        """What measuring everything once takes, with as many subnets as usual."""
        return self.kernel_seconds * len(self.kernels) + self.subnet_seconds * DEFAULT_SUBNETS


@dataclass
class Replay:
    """What one way of choosing has measured so far."""

    recorded: Recorded
    seconds: float = 0.0
    table: dict[Workload, float] = field(default_factory=dict)
    networks: dict[Architecture, float] = field(default_factory=dict)

    def lacking(self, subnet: Architecture) -> tuple[Workload, ...]:
        """Return the kernels of a subnet that were not measured."""
        layers = workloads(self.recorded.space, subnet)
        chosen = dict.fromkeys(choose_kernels(layers, self.recorded.table))
        return tuple(one for one in chosen if one not in self.table)

    def cost(self, batch: Batch) -> float:
        """Return the seconds that a batch takes."""
        recorded = self.recorded
        kernels, subnets = len(batch.kernels), len(batch.subnets)
        return recorded.kernel_seconds * kernels + recorded.subnet_seconds * subnets

    def measure(self, batch: Batch) -> None:
        """Measure what a batch holds."""
        self.seconds += self.cost(batch)
        self.table |= {one: self.recorded.table[one] for one in batch.kernels}
        self.networks |= {one: self.recorded.networks[one] for one in batch.subnets}

    def error(self, test: Sequence[Architecture]) -> float:
        """Return the mean absolute percentage error on the test subnets, as a fraction."""
        space, label = self.recorded.space, space_label(self.recorded.space)
        table = KernelTable(self.table, self.recorded.table.device_name, evidence_hash())
        unknown = {(label, one.key) for one in self.recorded.networks if one not in self.networks}
        predictor = LatencyPredictor.of_kernels(space, table).corrected(
            list(self.networks.items()), readings=self.recorded.readings.without(unknown)
        )
        measured_ms = [self.recorded.networks[one] for one in test]
        return mape(predictor.predict(test).latency_ms, measured_ms)


def main() -> int:
    """Replay all ways of choosing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space")
    parser.add_argument("--device", default="local", help="whose profile is in the store")
    parser.add_argument("--test", type=int, default=120, help="subnets to predict")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON document")
    parser.add_argument("--results", type=Path, help="add the document to the list in this file")
    parser.add_argument("--picture", type=Path, help="draw the errors, a PNG file")
    options = parser.parse_args()
    return run(lambda: measure(options), options.json, options.results)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Raises InputError."""
    if options.seeds < 1 or options.test < 1:
        raise InputError("--seeds and --test must be at least 1")
    recorded = load(options)
    times = [round(share * recorded.seconds, 1) for share in SHARES]
    errors: dict[str, list[list[float]]] = {CHOSEN: [], RANDOM: [], FREQUENT: []}
    curves: list[list[tuple[float, float]]] = []
    for seed in range(options.seeds):
        order = np.random.default_rng(seed).permutation(len(recorded.networks))
        subnets = [list(recorded.networks)[index] for index in order]
        test, candidates = subnets[: options.test], subnets[options.test :]
        curve = [(one.seconds, one.error(test)) for one in chosen(recorded, candidates, times[-1])]
        curves.append(curve)
        errors[CHOSEN].append([_at(curve, seconds) for seconds in times])
        errors[RANDOM].append(
            [random(recorded, candidates, seed, seconds).error(test) for seconds in times]
        )
        errors[FREQUENT].append(
            [frequent(recorded, candidates, seconds).error(test) for seconds in times]
        )
        progress(f"seed {seed}: {[f'{name} {rows[-1][-1]:.4f}' for name, rows in errors.items()]}")
    medians = {name: np.median(rows, axis=0).tolist() for name, rows in errors.items()}
    if options.picture is not None:
        write_atomically(options.picture, draw(times, medians))
    shares = {
        name: [
            _time_share(curves, goal, seconds, STEP * recorded.seconds)
            for goal, seconds in zip(medians[name], times, strict=True)
        ]
        for name in (RANDOM, FREQUENT)
    }
    return {
        "arguments": {
            "space": options.space,
            "device": options.device,
            "test": options.test,
            "seeds": options.seeds,
        },
        "kernel_seconds": round(recorded.kernel_seconds, 3),
        "subnet_seconds": round(recorded.subnet_seconds, 3),
        "kernels": len(recorded.kernels),
        "subnets": len(recorded.networks),
        "seconds": times,
        "median_mape": {
            name: [round(one, 5) for one in values] for name, values in medians.items()
        },
        "time_share_of": shares,
        "median_time_share_of": {
            name: float(np.median([np.inf if one is None else one for one in values]))
            for name, values in shares.items()
        },
    }


def load(options: argparse.Namespace) -> Recorded:
    """Read a complete profile from the store. Raises InputError when it is not complete."""
    space = load_space(options.space)
    kernels = tuple(space_workloads(space))
    with Store.open() as store:
        table = kernel_table(store, options.device)
        networks = dict(measured_subnets(store, options.device, space, evidence_hash()))
        tuned = tuned_kernels(store, options.device)
        readings = in_network_readings(store, options.device, tuned)
        kernel_seconds, subnet_seconds = measuring_seconds(store, options.device, space)
    if missing := set(kernels) - table.keys():
        raise InputError(f"{len(missing)} kernels are not measured; run `bignas profile` first")
    if len(networks) < options.test + DEFAULT_SUBNETS:
        raise InputError(f"{len(networks)} measured subnets are too few for --test {options.test}")
    return Recorded(space, table, kernels, networks, readings, kernel_seconds, subnet_seconds)


def measuring_seconds(store: Store, device: str, space: SearchSpace) -> tuple[float, float]:
    """Return the mean seconds of a kernel and of a subnet in the profile that is in the store.

    Of the steps up to the first in which there is nothing new, all of one session.
    """
    records = [
        *store.kernel_measurements(device, code_hash=evidence_hash()),
        *store.network_measurements(device, space=space_label(space), code_hash=evidence_hash()),
    ]
    records = sorted((one for one in records if one.ok), key=lambda one: one.created_at)
    steps = [list(step) for _, step in itertools.groupby(records, key=lambda one: one.subject)]
    seconds = {Subject.KERNEL: 0.0, Subject.NETWORK: 0.0}
    counts = dict.fromkeys(seconds, 0)
    known: set[Workload | str | None] = {one.workload for one in steps[0]}
    for before, step in itertools.pairwise(steps):
        new = {one.architecture or one.workload for one in step} - known
        if not new or before[-1].session != step[-1].session:
            break
        known |= new
        counts[step[0].subject] += len(new)
        passed = step[-1].created_at - before[-1].created_at
        seconds[step[0].subject] += passed.total_seconds()
    if not all(counts.values()):
        raise InputError("the profile in the store does not tell what measuring takes")
    kernel, subnet = (seconds[one] / counts[one] for one in seconds)
    return kernel, subnet


def chosen(
    recorded: Recorded, candidates: Sequence[Architecture], seconds: float
) -> Iterator[Replay]:
    """Yield the state after each batch that the planner chooses, until so many seconds are over."""
    planner = ProfilePlanner(recorded.space, recorded.kernels, DEFAULT_SUBNETS, candidates)
    replay = Replay(recorded)
    while replay.seconds < seconds:
        batch = planner.next_batch(replay.table, replay.networks.keys())
        if not batch:
            return
        replay.measure(batch)
        yield replay


def random(
    recorded: Recorded, candidates: Sequence[Architecture], seed: int, seconds: float
) -> Replay:
    """Return the state after so many seconds of random choice, one measurement after the other."""
    rng = np.random.default_rng(seed)
    kernels = [recorded.kernels[place] for place in rng.permutation(len(recorded.kernels))]
    subnets = list(candidates[:DEFAULT_SUBNETS])
    replay, subnet_seconds = Replay(recorded), 0.0
    while left := [one for one in kernels if one not in replay.table]:
        wants_subnet = bool(subnets) and subnet_seconds < (1 - KERNEL_TIME) * replay.seconds
        steps = [Batch((left[0],), ())]
        if wants_subnet:
            subnet = subnets.pop(0)
            steps = [Batch((one,), ()) for one in replay.lacking(subnet)] + [Batch((), (subnet,))]
        for step in steps:
            if replay.seconds + replay.cost(step) > seconds:
                return replay
            replay.measure(step)
            subnet_seconds += replay.cost(step) if wants_subnet else 0.0
    for subnet in subnets:
        if replay.seconds + recorded.subnet_seconds > seconds:
            break
        replay.measure(Batch((), (subnet,)))
    return replay


def frequent(recorded: Recorded, candidates: Sequence[Architecture], seconds: float) -> Replay:
    """Return the state after so many seconds when frequent kernels come first, then subnets."""
    replay = Replay(recorded)
    count = int(KERNEL_TIME * seconds / recorded.kernel_seconds)
    replay.measure(Batch(recorded.kernels[:count], ()))
    for one in candidates[:DEFAULT_SUBNETS]:
        for step in (Batch(replay.lacking(one), ()), Batch((), (one,))):
            if replay.seconds + replay.cost(step) > seconds:
                return replay
            replay.measure(step)
    return replay


def _at(curve: Sequence[tuple[float, float]], seconds: float) -> float:
    """Return the error of the last state that was reached by then, else of the first one."""
    reached = [error for spent, error in curve if spent <= seconds]
    return reached[-1] if reached else curve[0][1]


def _time_share(
    curves: Sequence[Sequence[tuple[float, float]]], goal: float, seconds: float, step: float
) -> float | None:
    """Return the time until the median of the errors is as low, as a share; None when it never is.

    Looking at each seed alone would count the chance dips of many looks.
    """
    end = max(one[-1][0] for one in curves) + step
    for spent in np.arange(step, end, step).tolist():
        if np.median([_at(one, spent) for one in curves]) <= goal and all(
            one[0][0] <= spent for one in curves
        ):
            return round(float(spent) / seconds, 3)
    return None


def draw(times: Sequence[float], medians: Mapping[str, Sequence[float]]) -> bytes:
    """Return a PNG picture of the errors against minutes; the same errors give the same bytes."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    minutes = [seconds / 60 for seconds in times]
    for name, values in medians.items():
        percent = [100 * one for one in values]
        axes.plot(minutes, percent, color=COLORS[name], marker="o", markersize=4, label=name)
    axes.set_yscale("log")
    ticks = [
        tick for tick in (0.3, 0.5, 1, 2, 3, 5, 10, 20, 50) if tick < 120 * max(medians[RANDOM])
    ]
    axes.set_yticks(ticks, [f"{tick:g}%" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0, None)
    axes.set_xlabel("minutes of measuring")
    axes.set_ylabel("mean error on fresh subnets")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return picture.getvalue()


if __name__ == "__main__":
    sys.exit(main())
