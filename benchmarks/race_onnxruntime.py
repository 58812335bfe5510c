"""Our binaries against ONNX Runtime: the same networks, one thread, interleaved in one run.

    python benchmarks/race_onnxruntime.py --json benchmarks/results/race_onnxruntime.json

Children of an untrained supernet with recalibrated batch norm (latency does not depend on the
values of weights), spread from the smallest to the biggest, are exported to ONNX once; ONNX Runtime
runs the file with all its graph optimisations and bound inputs and outputs, ours is compiled from
it. Both are called from Python, once a run, pinned to the same core; their order is drawn anew in
each round. Kernels that the store lacks are tuned first.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from bignas.compile.codegen import compiler_version
from bignas.compile.library import NetworkLibrary
from bignas.compile.lower import lower_onnx
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.compile.onnx_export import INPUT_NAME, OUTPUT_NAME, export_onnx, onnx_session
from bignas.device_db.store import Store
from bignas.latency.protocol import measuring_core
from bignas.latency.subnets import spread_sample
from bignas.latency.tuned import schedules_of
from bignas.latency.tuning import ensure_tuned
from bignas.supernet.calibrate import calibrate
from bignas.supernet.network import Supernet
from bignas.supernet.space import Architecture
from bignas.supernet.spaces import load_space

INNER = 20
ROUNDS = 100


def main() -> None:
    """Run the race and write every sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--subnets", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    space = load_space(options.space)
    network = Supernet(space, seed=0)
    architectures = spread_sample(space, options.subnets, np.random.default_rng(0))
    entries: list[dict[str, Any]] = []
    with Store.open() as store, tempfile.TemporaryDirectory() as folder:
        device = store.device("local")
        cache = ObjectCache(device.target)
        models = [_model(network, architecture) for architecture in architectures]
        graphs = [lower_onnx(model) for model in models]
        needed = [workload for graph in graphs for workload in graph.workloads]
        schedules = schedules_of(ensure_tuned(needed, device, store, cache))
        os.sched_setaffinity(0, {measuring_core()})
        for index, (architecture, model, graph) in enumerate(
            zip(architectures, models, graphs, strict=True)
        ):
            path = Path(folder) / f"network{index}.so"
            path.write_bytes(build_network(graph, schedules, cache).library)
            entry = race(NetworkLibrary(path), model, graph.input_shape)
            entry |= {"arch": architecture.to_dict(), "macs": space.macs(architecture)}
            entries.append(entry)
            print(
                f"{space.macs(architecture) / 1e6:6.2f} MMACs  bignas {entry['bignas_us']:8.1f} us"
                f"  ONNX Runtime {entry['onnxruntime_us']:8.1f} us  ratio {entry['ratio']:.3f}"
            )
    ratios = np.array([entry["ratio"] for entry in entries])
    result = {
        "kind": "measured",
        "space": space.name,
        "cpu": device.cpu_model,
        "target": device.target.to_dict(),
        "threads": 1,
        "python": platform.python_version(),
        "versions": {"bignas": compiler_version(), "onnxruntime": onnxruntime.__version__},
        "geometric_mean_ratio": float(np.exp(np.log(ratios).mean())),
        "worst_ratio": float(ratios.max()),
        "networks": entries,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"geometric mean {result['geometric_mean_ratio']:.3f}, worst {result['worst_ratio']:.3f}")


def _model(network: Supernet, architecture: Architecture) -> bytes:
    generator = torch.Generator().manual_seed(1)
    size = architecture.resolution
    images = torch.randn(64, network.space.in_channels, size, size, generator=generator)
    child = network.extract(architecture, calibrate(network, architecture, images))
    return export_onnx(child, size, network.space.in_channels)


def race(library: NetworkLibrary, model: bytes, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Time one network in both engines; medians of the samples, in microseconds a run."""
    image = np.random.default_rng(2).standard_normal((1, *shape)).astype(np.float32)
    session = onnx_session(model)
    expected = np.asarray(session.run(None, {INPUT_NAME: image})[0])
    error = float(np.abs(library.run(image) - expected).max())
    if error > 1e-4 * max(1.0, float(np.abs(expected).max())):
        raise SystemExit(f"the engines disagree by {error}")
    binding = session.io_binding()
    binding.bind_cpu_input(INPUT_NAME, image)
    binding.bind_output(OUTPUT_NAME, "cpu")
    runners: dict[str, Callable[[], object]] = {
        "bignas": library.bind(image),
        "onnxruntime": lambda: session.run_with_iobinding(binding),
    }
    samples: dict[str, list[float]] = {name: [] for name in runners}
    order = np.random.default_rng(3)
    for warm in runners.values():
        for _ in range(50):
            warm()
    for _ in range(ROUNDS):
        for index in order.permutation(len(runners)):
            name = list(runners)[int(index)]
            samples[name].append(_sample_us(runners[name]))
    ours, theirs = (float(np.median(samples[name])) for name in runners)
    return {
        "bignas_us": ours,
        "onnxruntime_us": theirs,
        "ratio": ours / theirs,
        "max_abs_error": error,
        "samples_us": samples,
    }


def _sample_us(run: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    for _ in range(INNER):
        run()
    return (time.perf_counter_ns() - start) / INNER / 1e3


if __name__ == "__main__":
    main()
