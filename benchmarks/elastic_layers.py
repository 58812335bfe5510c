"""Elastic children against static twins: forward and backward, side by side.

    python benchmarks/elastic_layers.py --json benchmarks/results/elastic_layers.json

Ten children from smallest to biggest; the twin is the extracted child in training mode, plain torch
modules of the same shapes and weights. Both use torch's kernels, so that the ratio says what
slicing and the architecture as an argument cost; with --fused the elastic one uses its own kernels.
The two take turns, in random order, and the median of the ratios within the turns counts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bignas.device_db.probe import probe_local
from bignas.supernet.architecture import Architecture
from bignas.supernet.calibrate import calibrate
from bignas.supernet.child import Child
from bignas.supernet.memory import keep_freed_memory
from bignas.supernet.network import Supernet
from bignas.supernet.precision import training_execution
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space


def main() -> None:
    """Measure ten children."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    space = load_space(options.space)
    network = Supernet(space)
    rows = []
    for arch in children(space):
        row = compare(network, arch, options.batch, options.turns, options.fused)
        print(f"{row['macs'] / 1e6:6.1f} MMACs, elastic / static {row['ratio']:.3f}", flush=True)
        rows.append(row)
    content = {
        "space": space.name,
        "cpu": probe_local().cpu_model,
        "threads": options.threads,
        "batch": options.batch,
        "fused": options.fused,
        "median_ratio": statistics.median(row["ratio"] for row in rows),
        "children": rows,
    }
    print(f"median {content['median_ratio']:.3f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def children(space: SearchSpace) -> list[Architecture]:
    """The smallest, the biggest, and eight spread evenly over the MACs of random ones."""
    rng = np.random.default_rng(0)
    drawn = sorted((space.sample(rng) for _ in range(200)), key=space.macs)
    return [space.smallest(), *drawn[12:200:25], space.biggest()]


def compare(
    network: Supernet, arch: Architecture, batch: int, turns: int, fused: bool
) -> dict[str, Any]:
    """Times of one child in milliseconds, and the median of their ratios."""
    execution = training_execution(fused=fused)
    space, side = network.space, arch.resolution
    images = torch.randn(batch, space.in_channels, side, side)
    images = images.contiguous(memory_format=torch.channels_last)
    twin = trainable(network.extract(arch, calibrate(network, arch, images)))
    functions: dict[str, Callable[[], Tensor]] = {
        "elastic": lambda: network.classify(network.features(images, arch, execution)),
        "static": lambda: twin(images),
    }
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 2):  # the first two warm up
        for name in rng.permutation(list(functions)):
            network.zero_grad(set_to_none=False)
            twin.zero_grad(set_to_none=False)
            started = time.perf_counter()
            functions[name]().sum().backward()  # type: ignore[no-untyped-call]
            if turn >= 2:
                times[name].append((time.perf_counter() - started) * 1e3)
    ratios = [one / two for one, two in zip(times["elastic"], times["static"], strict=True)]
    return {
        "macs": space.macs(arch),
        "arch": arch.to_dict(),
        "ratio": statistics.median(ratios),
        **{f"{name}_ms": statistics.median(values) for name, values in times.items()},
        "samples_ms": times,
    }


def trainable(child: Child) -> Child:
    """The child as it would be trained; its batch norms keep no running statistics either."""
    for module in child.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    child.requires_grad_(True)
    return child.train()


if __name__ == "__main__":
    main()
