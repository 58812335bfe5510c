"""How many architectures a second the latency predictor predicts on one core, features included.

    python benchmarks/predict_rate.py cifar bignas --json

Seconds are processor seconds of this process, medians of repetitions. Latencies of kernels and
networks are invented, such that the predictor's correction has trees, its slowest kind, and kernels
take more in networks that read more. The parts of the architectures are known beforehand, as after
the first predictions of a search.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from command import run

from bignas.compile.workload import workloads
from bignas.device_db.errors import InputError
from bignas.device_db.workload import BYTES_PER_VALUE, Workload
from bignas.latency.in_network_model import InNetworkModel
from bignas.latency.in_network_readings import InNetworkReadings, NetworkKernels
from bignas.latency.kernel_model import KernelTable
from bignas.latency.network_sums import network_features
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import space_workloads
from bignas.latency.regression import Correction, ModelKind, fit_correction
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space

NETWORKS = 400  # that the trees are fitted to
MACS_PER_US = 3e4


def main() -> int:
    """Measure each space."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spaces", nargs="+")
    parser.add_argument("--count", type=int, default=100_000, help="architectures at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON document")
    parser.add_argument("--results", type=Path, help="add the document to the list in this file")
    options = parser.parse_args()
    return run(lambda: measure(options), options.json, options.results)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Raises InputError."""
    if options.count < 1 or options.repeats < 1:
        raise InputError("--count and --repeats must be at least 1")
    return {
        "arguments": {
            "spaces": options.spaces,
            "count": options.count,
            "repeats": options.repeats,
        },
        "spaces": {
            name: rate(load_space(name), options.count, options.repeats) for name in options.spaces
        },
    }


def rate(space: SearchSpace, count: int, repeats: int) -> dict[str, float]:
    """Return architectures a second, and the share of XGBoost in the time."""
    predictor = with_trees(space)
    random = np.random.default_rng(1)
    architectures = [space.sample(random) for _ in range(count)]
    predictor.predict(architectures)  # parts that were not met before are learned
    whole = _seconds(lambda: predictor.predict(architectures), repeats)
    trees, ridge = predictor.correction.trees, predictor.correction.ridge
    assert trees is not None
    assert ridge is not None
    features = network_features(predictor.sums(architectures))
    rows = np.clip(features, ridge.low, ridge.high)
    boosting = _seconds(lambda: trees.predict(rows), repeats)
    return {
        "architectures_per_second": round(count / whole),
        "xgboost_share": round(boosting / whole, 3),
        "trees": len(trees),
        "features": features.shape[1],
    }


def with_trees(space: SearchSpace) -> LatencyPredictor:
    """Return a predictor whose correction is made of trees, on invented latencies."""
    latencies_us = {one: 0.3 + one.macs / MACS_PER_US for one in space_workloads(space)}
    predictor = LatencyPredictor.of_kernels(space, KernelTable(latencies_us, "invented", "code"))
    random = np.random.default_rng(0)
    networks = [space.sample(random) for _ in range(NETWORKS)]
    within = InNetworkModel.fit(_readings(space, networks, latencies_us), latencies_us)
    predictor = replace(predictor, within=within)
    features = network_features(predictor.sums(networks))
    steps = np.sin(3 * (features[:, 0] - features[:, 0].mean()) / features[:, 0].std())
    correction: Correction = fit_correction(features, 0.1 * steps, 0).correction
    if correction.kind is not ModelKind.TREES:
        raise InputError(f"the invented latencies of {space.name} lead to {correction.kind}")
    return replace(predictor, correction=correction)


def _readings(
    space: SearchSpace, networks: Sequence[Architecture], alone_us: Mapping[Workload, float]
) -> InNetworkReadings:
    """Return kernels that take the more in networks the more weights these have."""
    found = []
    for one in networks:
        read_bytes = BYTES_PER_VALUE * space.params(one)
        calls = {
            work: alone_us[work] * float(np.log2(read_bytes)) / 20 for work in workloads(space, one)
        }
        found.append(NetworkKernels((space.name, one.key), read_bytes, sum(calls.values()), calls))
    return InNetworkReadings(found, {})


def _seconds(work: Callable[[], object], repeats: int) -> float:
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return float(np.median(spent))


if __name__ == "__main__":
    sys.exit(main())
