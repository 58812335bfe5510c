"""Our binaries against other engines: the same networks, interleaved in one run.

    python benchmarks/race_engines.py --json benchmarks/results/race_engines.json

The networks are children of an untrained supernet with recalibrated batch norm (latency does not
depend on the values of weights), spread from the smallest to the biggest. Each is exported to ONNX
once; every engine gets that file, or the torch module it came from. All are called from Python once
a run, pinned to the same cores, with warm caches; their order is drawn anew in each round, and
outputs are compared before anything is timed. Kernels that the store lacks are tuned first.

`pip install -e '.[bench]'` adds peers; those that are not installed are named as absent.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import ENGINES, PACKAGES, Model, Prepared, absent_engines

from bignas.compile.lower import lower_onnx
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.compile.onnx_export import export_onnx
from bignas.device_db.records import Device
from bignas.device_db.store import Store
from bignas.latency.protocol import measuring_core
from bignas.latency.subnets import spread_sample
from bignas.latency.tuned import schedules_of
from bignas.latency.tuning import ensure_tuned
from bignas.supernet.calibrate import calibrate
from bignas.supernet.network import Supernet
from bignas.supernet.space import Architecture
from bignas.supernet.spaces import load_space

OURS = "bignas"
ROUNDS = 60
SAMPLE_US = 3000.0
TOLERANCE = 1e-3  # of the largest output; engines that use Winograd or fuse differently need it


def main() -> None:
    """Run the race and write every sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--subnets", type=int, default=10)
    parser.add_argument("--engines", default=",".join(ENGINES), help="separated by commas")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    absent = absent_engines()
    names = [name for name in options.engines.split(",") if name not in absent]
    torch.set_num_threads(1)
    space = load_space(options.space)
    network = Supernet(space, seed=0)
    architectures = spread_sample(space, options.subnets, np.random.default_rng(0))
    with Store.open() as store, tempfile.TemporaryDirectory() as folder:
        device = store.device("local")
        models = [
            _model(network, one, Path(folder) / f"network{index}.so")
            for index, one in enumerate(architectures)
        ]
        _compile(models, device, store)
        os.sched_setaffinity(0, {measuring_core()})
        entries: list[dict[str, Any]] = []
        for architecture, model in zip(architectures, models, strict=True):
            entry = race(model, names, threads=1)
            entry |= {"arch": architecture.to_dict(), "macs": space.macs(architecture)}
            entries.append(entry)
            medians = "  ".join(f"{name} {us:.1f}" for name, us in entry["median_us"].items())
            print(f"{space.macs(architecture) / 1e6:6.2f} MMACs  {medians} us", flush=True)
    ratios = _ratios(entries)
    result = {
        "kind": "measured",
        "space": space.name,
        "cpu": device.cpu_model,
        "target": device.target.to_dict(),
        "threads": 1,
        "python": platform.python_version(),
        "versions": {name: version(PACKAGES[name]) for name in names},
        "absent": [name for name in options.engines.split(",") if name in absent],
        "geometric_mean_ratio": ratios,
        "networks": entries,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, ratio in ratios.items():
        print(f"geometric mean of bignas / {name}: {ratio:.3f}")


def _model(network: Supernet, architecture: Architecture, library: Path) -> Model:
    generator = torch.Generator().manual_seed(1)
    size, channels = architecture.resolution, network.space.in_channels
    images = torch.randn(64, channels, size, size, generator=generator)
    child = network.extract(architecture, calibrate(network, architecture, images))
    image = np.random.default_rng(2).standard_normal((1, channels, size, size))
    model = export_onnx(child, size, channels)
    return Model(architecture.key, model, child, library, image.astype(np.float32))


def _compile(models: list[Model], device: Device, store: Store) -> None:
    cache = ObjectCache(device.target)
    graphs = [lower_onnx(model.onnx) for model in models]
    needed = [workload for graph in graphs for workload in graph.workloads]
    schedules = schedules_of(ensure_tuned(needed, device, store, cache))
    for model, graph in zip(models, graphs, strict=True):
        model.library.write_bytes(build_network(graph, schedules, cache).library)


def race(model: Model, names: list[str], threads: int) -> dict[str, Any]:
    """Time one network in the engines; medians of the samples, in microseconds a run."""
    runners = {name: ENGINES[name](model, threads) for name in names}
    outputs = {name: runner.output() for name, runner in runners.items()}
    scale = max(1.0, float(np.abs(outputs[OURS]).max()))
    errors = {name: float(np.abs(out - outputs[OURS]).max()) for name, out in outputs.items()}
    wrong = [name for name, error in errors.items() if error > TOLERANCE * scale]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)} and bignas disagree: {errors}")
    inner = {name: _warm_up(runner) for name, runner in runners.items()}
    samples: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(3)
    for _ in range(ROUNDS):
        for index in order.permutation(len(names)):
            name = names[int(index)]
            samples[name].append(_sample_us(runners[name], inner[name]))
    return {
        "median_us": {name: float(np.median(values)) for name, values in samples.items()},
        "max_abs_difference": errors,
        "samples_us": samples,
    }


def _warm_up(runner: Prepared) -> int:
    """Return how many runs make a sample of the wanted length."""
    for _ in range(30):
        runner.run()
    return max(1, round(SAMPLE_US / _sample_us(runner, 20)))


def _sample_us(runner: Prepared, inner: int) -> float:
    run = runner.run
    start = time.perf_counter_ns()
    for _ in range(inner):
        run()
    return (time.perf_counter_ns() - start) / inner / 1e3


def _ratios(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Return the geometric mean of ours over each engine, and over the fastest one each time."""
    peers = [name for name in entries[0]["median_us"] if name != OURS]
    ratios = {
        name: [entry["median_us"][OURS] / entry["median_us"][name] for entry in entries]
        for name in peers
    }
    ratios["fastest"] = [
        entry["median_us"][OURS] / min(entry["median_us"][name] for name in peers)
        for entry in entries
    ]
    return {name: float(np.exp(np.mean(np.log(values)))) for name, values in ratios.items()}


if __name__ == "__main__":
    main()
