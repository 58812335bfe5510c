"""Do the strategies find the optimum? All of them, on a space small enough to look at completely.

    python benchmarks/search_optimum.py --checkpoint cifar10-mbconv --device local \
        --json benchmarks/results/search_optimum_predicted.json
    python benchmarks/search_optimum.py --json benchmarks/results/search_optimum.json

The space is `cifar`, all its architectures. Latency comes from a latency predictor,
accuracy from a function of the architecture. With `--checkpoint` and `--device` they are the
accuracy predictor of that supernet and the latency predictor of that device, which has to be
profiled. Without, both are synthetic, and labelled so: the kernels of an invented device, and an
accuracy that saturates in log MACs, to which every option and every pair of options of neighbouring
stages adds a little. At five budgets the exhaustive optimum is compared with what each strategy
finds with at most 2% of the evaluations; suggestions that break the budget count as evaluations
too. Another accuracy function is another `Accuracy`.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import BignasError, InputError
from bignas.device_db.store import Store
from bignas.device_db.workload import Operator, Workload
from bignas.latency.kernel_model import KernelTable
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.predictors import load_predictor
from bignas.latency.profile import space_workloads
from bignas.search.pareto import hypervolume
from bignas.search.strategy import DEFAULT_STRATEGY, create_strategy
from bignas.search.trial import Trial
from bignas.supernet.accuracy_files import accuracy_path, read_accuracy_predictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space

Array = NDArray[np.float64]
Accuracy = Callable[[Sequence[Architecture]], Array]  # fractions from 0 to 1

SPACE = "cifar"
STRATEGIES = (DEFAULT_STRATEGY, "coarse-to-fine", "local", "evolution", "nsga2", "random")
BUDGET_QUANTILES = (0.05, 0.2, 0.4, 0.6, 0.8)  # of the latencies of the space
EVALUATION_SHARE = 0.02  # of the space, at most
SECONDS = 5.0  # a run, at most
BATCH = 250
CHUNK = 50_000
ROUNDING = 1e-9  # of accuracies that are predicted in batches of another size


class SyntheticAccuracy:
    """An invented accuracy: saturating in log MACs, with tastes for options and pairs of them."""

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._space = space
        sizes = [len(options) for _, options in space.dimensions()]
        self._options = [rng.normal(0, 0.002, size) for size in sizes]
        self._pairs = {
            (index, index + step): rng.normal(0, 0.001, (sizes[index], sizes[index + step]))
            for step in (1, 2, 3, 4)
            for index in range(len(sizes) - step)
        }
        self._low = np.log(space.macs(space.smallest()))
        self._range = np.log(space.macs(space.biggest())) - self._low

    def __call__(self, architectures: Sequence[Architecture]) -> Array:
        """Accuracies of architectures [n]."""
        rows = np.array([self._space.positions(one) for one in architectures])
        macs = np.array([self._space.macs(one) for one in architectures])
        effort = (np.log(macs) - self._low) / self._range
        top1 = 0.92 - 0.25 * np.exp(-2.5 * effort)
        for dimension, tastes in enumerate(self._options):
            top1 += tastes[rows[:, dimension]]
        for (first, second), pair_tastes in self._pairs.items():
            top1 += pair_tastes[rows[:, first], rows[:, second]]
        return np.asarray(np.clip(top1, 0, 1))


def synthetic_predictor(space: SearchSpace) -> LatencyPredictor:
    """A predictor for an invented device: arithmetic on whole vectors, traffic and a call."""
    macs_per_us = {Operator.CONV: 4e4, Operator.POINTWISE: 5e4, Operator.DEPTHWISE: 2e4}

    def kernel_us(work: Workload) -> float:
        vectors = -(-work.out_channels // 16) * 16 / work.out_channels
        moved = work.height * work.width * work.in_channels + work.weight_count
        return 0.2 + work.macs * vectors / macs_per_us.get(work.operator, 2e4) + moved / 2e4

    kernels = {work: kernel_us(work) for work in space_workloads(space)}
    return LatencyPredictor.fit(space, KernelTable(kernels, "synthetic", "synthetic"), [])


@dataclasses.dataclass(frozen=True)
class Landscape:
    """What a space is searched for, and where it comes from."""

    kind: str
    latency_ms: Accuracy  # milliseconds of architectures
    accuracy: Accuracy
    latency_source: str
    accuracy_source: str


def synthetic_landscape(space: SearchSpace) -> Landscape:
    """Everything invented."""
    predictor = synthetic_predictor(space)
    return Landscape(
        "synthetic",
        lambda archs: predictor.predict(archs).latency_ms,
        SyntheticAccuracy(space),
        "predictor of a synthetic kernel table",
        "synthetic: saturating in log MACs, with effects of options and pairs",
    )


def predicted_landscape(checkpoint: str, device: str) -> Landscape:
    """Accuracy as predicted for children of a supernet, latency as predicted on a profiled device.

    Raises:
        BignasError: no such supernet or device, or one without its predictor.
    """
    accuracy = read_accuracy_predictor(accuracy_path(checkpoint))
    if accuracy.space != load_space(SPACE).with_classes(accuracy.space.classes):
        raise InputError(f"{checkpoint} is no supernet of the space {SPACE!r}")
    with Store.open() as store:
        predictor = load_predictor(accuracy.space, store.device(device))
    return Landscape(
        "predicted",
        lambda archs: predictor.predict(archs).latency_ms,
        accuracy.predict,
        f"latency predictor of the device {device!r}",
        f"accuracy predictor of {checkpoint}",
    )


def run_strategy(
    name: str,
    seed: int,
    space: SearchSpace,
    landscape: Landscape,
    budget_ms: float,
    evaluations: int,
) -> tuple[list[Trial], float, float]:
    """Let a strategy look at `evaluations` architectures.

    Returns its trials, and the seconds it took: of the clock, and of the processor.
    """
    start, start_cpu = time.perf_counter(), time.process_time()
    strategy = create_strategy(name, space, seed)
    trials: list[Trial] = []
    while len(trials) < evaluations:
        suggestions = strategy.suggest(min(BATCH, evaluations - len(trials)))
        if not suggestions:
            break
        latencies_ms, top1 = landscape.latency_ms(suggestions), landscape.accuracy(suggestions)
        batch = [
            Trial(one, float(ms), float(ms) / budget_ms, float(a) if ms <= budget_ms else None)
            for one, ms, a in zip(suggestions, latencies_ms, top1, strict=True)
        ]
        strategy.tell(batch)
        trials += batch
    return trials, time.perf_counter() - start, time.process_time() - start_cpu


def look_at_all(space: SearchSpace, landscape: Landscape) -> tuple[Array, Array]:
    """Latencies and accuracies of every architecture."""
    latencies, accuracies = [], []
    chunk: list[Architecture] = []
    for number, architecture in enumerate(space.architectures(), start=1):
        chunk.append(architecture)
        if len(chunk) == CHUNK or number == space.size():
            latencies.append(landscape.latency_ms(chunk))
            accuracies.append(landscape.accuracy(chunk))
            chunk = []
    return np.concatenate(latencies), np.concatenate(accuracies)


def main() -> None:
    """Run all strategies at all budgets and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--checkpoint", metavar="CKPT", help="a supernet of `cifar`, for accuracy")
    parser.add_argument("--device", help="a device profiled for `cifar`, for latency")
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.device is None):
        parser.error("--checkpoint and --device belong together")
    space = load_space(SPACE)
    if options.evaluations > EVALUATION_SHARE * space.size():
        parser.error(f"--evaluations must be at most {EVALUATION_SHARE:.0%} of {space.size()}")
    try:
        landscape = (
            synthetic_landscape(space)
            if options.checkpoint is None
            else predicted_landscape(options.checkpoint, options.device)
        )
    except BignasError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    start = time.perf_counter()
    latencies, accuracies = look_at_all(space, landscape)
    exhaustive_seconds = time.perf_counter() - start
    slowest = float(latencies.max())
    rows: list[dict[str, Any]] = []
    for quantile in BUDGET_QUANTILES:
        budget_ms = float(np.quantile(latencies, quantile))
        optimum = float(accuracies[latencies <= budget_ms].max())
        for name in options.strategies.split(","):
            runs = [
                run_strategy(name, seed, space, landscape, budget_ms, options.evaluations)
                for seed in range(options.seeds)
            ]

            def is_optimum(trial: Trial, optimum: float = optimum) -> bool:
                return trial.top1 is not None and trial.top1 >= optimum - ROUNDING

            best = [max(one.top1 or 0.0 for one in trials) for trials, *_ in runs]
            to_optimum = [
                next((n for n, one in enumerate(trials, 1) if is_optimum(one)), None)
                for trials, *_ in runs
            ]
            found = [number for number in to_optimum if number is not None]
            rows.append(
                {
                    "budget_ms": budget_ms,
                    "budget_quantile": quantile,
                    "strategy": name,
                    "optimum_top1": optimum,
                    "found_share": len(found) / len(runs),
                    "mean_regret": optimum - float(np.mean(best)),
                    "worst_regret": optimum - min(best),
                    "median_looked_at_to_optimum": float(np.median(found)) if found else None,
                    "most_looked_at": max(len(trials) for trials, *_ in runs),
                    "most_looked_at_share": max(len(t) for t, *_ in runs) / space.size(),
                    "mean_hypervolume": float(
                        np.mean([hypervolume(trials, slowest) for trials, *_ in runs])
                    ),
                    "median_seconds": float(np.median([seconds for _, seconds, _ in runs])),
                    "most_seconds": max(seconds for _, seconds, _ in runs),
                    "most_processor_seconds": max(seconds for *_, seconds in runs),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    default = [row for row in rows if row["strategy"] == DEFAULT_STRATEGY]
    content = {
        "kind": landscape.kind,
        "accuracy": landscape.accuracy_source,
        "latency": landscape.latency_source,
        "space": space.to_dict(),
        "architectures": space.size(),
        "seeds": options.seeds,
        "exhaustive_seconds": exhaustive_seconds,
        "processors": os.cpu_count(),
        "default_strategy": DEFAULT_STRATEGY,
        "default_found_share": float(np.mean([row["found_share"] for row in default])),
        "default_most_seconds": max((row["most_seconds"] for row in default), default=None),
        "default_most_processor_seconds": max(
            (row["most_processor_seconds"] for row in default), default=None
        ),
        "results": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
