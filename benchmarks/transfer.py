"""Few-shot transfer of latencies to new devices, on a published table, against baselines.

    python benchmarks/transfer.py --data FILE.npz --source A,B,... --target C,D --json
    python benchmarks/transfer.py --data FILE.npz --leave-out-families --json

Each target is measured (looked up) for --samples architectures, with each of --seeds seeds; scores
are means over seeds, over the architectures not measured. bignas chooses what it measures, the
baselines get random samples; `random_samples` is bignas on the same random samples.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from baselines import BASELINES
from command import names, progress, run
from numpy.typing import NDArray

from bignas.device_db.errors import InputError
from bignas.latency.metrics import mape, spearman, within
from bignas.latency.published import PublishedTable
from bignas.latency.published_files import load_table
from bignas.latency.transfer import transfer

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Scores = dict[str, float]

OURS, RANDOM = "bignas", "random_samples"


def main() -> int:
    """Score bignas and the baselines on each target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="table in NPZ format")
    parser.add_argument("--source", type=names, default=[], help="known devices, with commas")
    parser.add_argument("--target", type=names, default=[], help="new devices, with commas")
    parser.add_argument(
        "--leave-out-families", action="store_true",
        help="ignore --source: all devices but those with the target's name up to the first _",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=20, help="measurements of a new device")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON document")
    parser.add_argument("--results", type=Path, help="add the document to the list in this file")
    options = parser.parse_args()
    return run(lambda: measure(options), options.json, options.results)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Raises InputError."""
    table = load_table(options.data)
    count = table.choices.shape[0]
    if not 2 <= options.samples <= count - 2:
        raise InputError(f"--samples must lie between 2 and {count - 2}, not {options.samples}")
    if options.seeds < 1:
        raise InputError("--seeds must be at least 1")
    targets = options.target or (list(table.devices) if options.leave_out_families else [])
    if not targets:
        raise InputError("name the new devices with --target")
    table.latencies([*options.source, *targets])
    scores: dict[str, dict[str, Scores]] = {}
    for target in dict.fromkeys(targets):
        sources = [name for name in options.source if name != target]
        if options.leave_out_families:
            family = target.split("_")[0]
            sources = [name for name in table.devices if name.split("_")[0] != family]
        elif target in options.source:
            progress(f"{target} is a target: it is left out of its own sources")
        for method, score in score_target(table, sources, target, options).items():
            scores.setdefault(method, {})[target] = score
        progress(f"{target}: {scores[OURS][target]}")
    return {
        "arguments": {
            "data": options.data.name,
            "source": "other families" if options.leave_out_families else options.source,
            "target": targets,
            "samples": options.samples,
            "seeds": options.seeds,
        },
        "targets": scores[OURS],
        "baselines": {name: scores.get(name) for name in BASELINES},
        RANDOM: scores[RANDOM],
        "mean": {name: _mean(list(rows.values())) for name, rows in scores.items()},
    }


def score_target(
    table: PublishedTable, sources: list[str], target: str, options: argparse.Namespace
) -> dict[str, Scores]:
    """Mean scores over seeds of each method on one target."""
    problem = table.problem(sources)
    truth_ms = table.latencies([target])[0]
    rows: dict[str, list[Scores]] = {}
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        drawn = rng.choice(problem.count, options.samples, replace=False)
        found = transfer(problem, lambda indices: truth_ms[indices], options.samples, seed)
        rows.setdefault(OURS, []).append(score_of(found.latency_ms, truth_ms, found.measured))
        plain = transfer(
            problem, lambda indices: truth_ms[indices], options.samples, seed, chosen=drawn
        )
        rows.setdefault(RANDOM, []).append(score_of(plain.latency_ms, truth_ms, drawn))
        for name, baseline in BASELINES.items():
            predicted_ms = baseline(table, problem.sources_ms, drawn, truth_ms[drawn])
            if predicted_ms is not None:
                rows.setdefault(name, []).append(score_of(predicted_ms, truth_ms, drawn))
    return {name: _mean(scores) for name, scores in rows.items()}


def score_of(predicted_ms: Array, truth_ms: Array, measured: Indices) -> Scores:
    """Scores over the architectures that were not measured."""
    rest = np.setdiff1d(np.arange(len(truth_ms)), measured)
    rank = spearman(predicted_ms[rest], truth_ms[rest])
    return {
        "spearman": rank if np.isfinite(rank) else 0.0,  # one prediction for all ranks nothing
        "mape": mape(predicted_ms[rest], truth_ms[rest]),
        "within_10": within(predicted_ms[rest], truth_ms[rest], 0.1),
    }


def _mean(rows: list[Scores]) -> Scores:
    return {key: round(float(np.mean([row[key] for row in rows])), 5) for key in rows[0]}


if __name__ == "__main__":
    sys.exit(main())
