"""What to measure next: chosen architectures against random ones, replayed on published tables.

    python benchmarks/active.py --data FILE.npz --json

Every device is new in turn, known devices are those of other families (names up to the first _).
Random choice measures --samples architectures, which takes the sum of their latencies and leads to
an error. How much of that time does the choice of bignas take until its error is as low? Errors and
times are medians over seeds, the predictor is the same; at most twice as many architectures are
measured, an error that is not reached by then counts as infinite time.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from command import names, progress, run
from numpy.typing import NDArray

from bignas.device_db.errors import InputError
from bignas.latency.metrics import mape
from bignas.latency.published_files import load_table
from bignas.latency.transfer import choose_batch, transfer
from bignas.latency.transfer_prior import TransferProblem, components

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

BATCH = 2
FIRST = 4  # samples before the first prediction


def main() -> int:
    """Replay both choices for each device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="table in NPZ format")
    parser.add_argument("--target", type=names, default=[], help="new devices; all when left out")
    parser.add_argument("--without-sources", action="store_true", help="no device is known")
    parser.add_argument("--samples", type=int, default=20, help="that random choice measures")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON document")
    parser.add_argument("--results", type=Path, help="add the document to the list in this file")
    options = parser.parse_args()
    return run(lambda: measure(options), options.json, options.results)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Raises InputError."""
    table = load_table(options.data)
    if not FIRST <= options.samples <= table.choices.shape[0] // 2 or options.seeds < 1:
        raise InputError(f"--samples must be at least {FIRST}, --seeds at least 1")
    targets = options.target or list(table.devices)
    truths_ms = table.latencies(targets)
    rows: dict[str, dict[str, float | None]] = {}
    for target, truth_ms in zip(targets, truths_ms, strict=True):
        family = target.split("_")[0]
        others = [one for one in table.devices if one.split("_")[0] != family]
        problem = table.problem([] if options.without_sources else others)
        rows[target] = replay(problem, truth_ms, options.samples, options.seeds)
        progress(f"{target}: {rows[target]}")
    shares = [np.inf if row["time_share"] is None else row["time_share"] for row in rows.values()]
    return {
        "arguments": {
            "data": options.data.name,
            "target": targets,
            "without_sources": options.without_sources,
            "samples": options.samples,
            "seeds": options.seeds,
        },
        "targets": rows,
        "median_time_share": _json_number(float(np.median(shares))),
    }


def replay(
    problem: TransferProblem, truth_ms: Array, samples: int, seeds: int
) -> dict[str, float | None]:
    """Medians over seeds of the time that both choices take to the same error."""
    random = np.median([random_choice(problem, truth_ms, samples, s) for s in range(seeds)], axis=0)
    goal, random_time_ms = random.tolist()
    runs = [ActiveRun(problem, truth_ms, seed) for seed in range(seeds)]
    while runs[0].count < 2 * samples:
        error, time_ms = np.median([one.step() for one in runs], axis=0).tolist()
        if error <= goal:
            break
    return {
        "time_share": _json_number(time_ms / random_time_ms) if error <= goal else None,
        "random_mape": round(goal, 5),
        "active_mape": round(error, 5),
        "active_samples": runs[0].count,
    }


def random_choice(
    problem: TransferProblem, truth_ms: Array, samples: int, seed: int
) -> tuple[float, float]:
    """Error with so many random measurements, and the milliseconds that they take."""
    drawn = np.random.default_rng(seed).choice(problem.count, samples, replace=False)
    predicted_ms = predictions(problem, truth_ms, drawn, seed)
    return _error(predicted_ms, truth_ms, drawn), float(truth_ms[drawn].sum())


class ActiveRun:
    """Measures what bignas chooses, batch by batch; a measurement costs its predicted latency."""

    def __init__(self, problem: TransferProblem, truth_ms: Array, seed: int) -> None:
        self._problem, self._truth_ms, self._seed = problem, truth_ms, seed
        self._parts = components(problem)
        self._rng = np.random.default_rng(seed)
        self._measured: Indices = np.zeros(0, dtype=np.intp)
        self._costs: Array | None = None

    @property
    def count(self) -> int:
        """How many were measured."""
        return len(self._measured)

    def step(self) -> tuple[float, float]:
        """Measure a batch; return the error that is left and the milliseconds spent so far."""
        size = BATCH if self.count else FIRST
        known_ms = self._truth_ms[self._measured]
        batch = choose_batch(self._parts, self._measured, known_ms, size, self._rng, self._costs)
        self._measured = np.concatenate([self._measured, batch])
        self._costs = predictions(self._problem, self._truth_ms, self._measured, self._seed)
        error = _error(self._costs, self._truth_ms, self._measured)
        return error, float(self._truth_ms[self._measured].sum())


def predictions(problem: TransferProblem, truth_ms: Array, measured: Indices, seed: int) -> Array:
    """Predictions [n] when these are measured."""
    return transfer(
        problem, lambda indices: truth_ms[indices], len(measured), seed, chosen=measured
    ).latency_ms


def _error(predicted_ms: Array, truth_ms: Array, measured: Indices) -> float:
    rest = np.setdiff1d(np.arange(len(truth_ms)), measured)
    return mape(predicted_ms[rest], truth_ms[rest])


def _json_number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
