"""How fast sandwich steps are, and what each measure for speed contributes, side by side.

    python benchmarks/training_speed.py --json benchmarks/results/training_speed.json
    python benchmarks/training_speed.py --space bignas --resolution 224 --batch-size 16 --turns 1 \
        --steps 3 --variants "torch kernels" "fused kernels, memory kept" \
        "mixed precision, memory kept" --json benchmarks/results/training_speed_bignas.json

First whole training steps of the real `train`, on random images: each variant runs a few steps in a
process of its own, with the environment of `bignas train`, the variants take turns, and the median
step of all turns counts; the memory is the most that a process ever had. With --resolution all
children are trained at that one. Steps of bfloat16 are slow at first, as code is generated for each
new shape: take some hundred. Then forward and backward of the biggest child alone, in turns within
one process: with torch's kernels, the fused ones, in mixed precision and under torch's autocast,
and its static twin; with --compile also through torch.compile, whose compile time stands beside.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elastic_layers import trainable
from torch import Tensor
from torch.nn import functional

from bignas.cli.environment import PRIMITIVES, PRIMITIVES_KEPT
from bignas.device_db.probe import probe_local
from bignas.supernet.calibrate import calibrate
from bignas.supernet.data import ImageData, Split
from bignas.supernet.layers import BatchExecution
from bignas.supernet.memory import keep_freed_memory
from bignas.supernet.network import Supernet
from bignas.supernet.precision import training_execution
from bignas.supernet.recipe import TrainConfig
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space
from bignas.supernet.train import train

BASELINE = "torch kernels"
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {"precision": "float32", "fused": False, "keep_memory": False},
    "torch kernels, memory kept": {"precision": "float32", "fused": False},
    "fused kernels": {"precision": "float32", "keep_memory": False},
    "fused kernels, memory kept": {"precision": "float32"},
    "batch 64": {"precision": "float32", "batch_size": 64},
    "one random child": {"precision": "float32", "random_children": 1},
    "mixed precision, memory kept": {"precision": "bfloat16"},
}


def main() -> None:
    """Measure everything, or one turn of one variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=TrainConfig().batch_size)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="a turn, the first is not counted")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too: takes minutes")
    parser.add_argument("--resolution", type=int, help="the only one; all when left out")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--variant", help="measure one turn of this variant and print it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    space = load_space(options.space)
    if options.resolution:
        space = dataclasses.replace(space, resolutions=(options.resolution,))
    if options.variant:
        print(json.dumps(turn(space, VARIANTS[options.variant], options)))
        return
    device = probe_local()
    content = {
        "space": space.name,
        "resolutions": space.resolutions,
        "cpu": device.cpu_model,
        "threads": options.threads,
        "batch_size": options.batch_size,
        "torch": torch.__version__,
        "steps": step_speeds(options),
    }
    content["biggest"] = child_speeds(space, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def step_speeds(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of each variant, their ratio to the baseline, and the memory it takes."""
    names = list(dict.fromkeys([BASELINE, *options.variants]))
    speeds: dict[str, list[float]] = {name: [] for name in names}
    peak_mb = dict.fromkeys(names, 0.0)
    for _ in range(options.turns):
        for name, values in speeds.items():
            command = [
                sys.executable, __file__, "--space", options.space, "--variant", name,
                "--steps", str(options.steps), "--threads", str(options.threads),
                "--batch-size", str(options.batch_size),
                *(["--resolution", str(options.resolution)] if options.resolution else []),
            ]  # fmt: skip
            environment = {PRIMITIVES: str(PRIMITIVES_KEPT)} | os.environ
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            answer = json.loads(done.stdout)
            values.extend(answer["images_per_second"])
            peak_mb[name] = max(peak_mb[name], answer["peak_mb"])
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, median in medians.items():
        ratio = median / medians[BASELINE]
        print(f"{name}: {median:.3g} images/s, x{ratio:.2f}, {peak_mb[name]:.0f} MB", flush=True)
    return {
        name: {
            "change": VARIANTS[name],
            "images_per_second": medians[name],
            "speedup": medians[name] / medians[BASELINE],
            "peak_mb": peak_mb[name],
            "samples": values,
        }
        for name, values in speeds.items()
    }


def turn(space: SearchSpace, change: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of each step but the first, and the most memory in MB."""
    usual = {"batch_size": options.batch_size, "threads": options.threads}
    config = TrainConfig(epochs=1, evaluate_every_epochs=0, **{**usual, **change})
    rng = np.random.default_rng(0)
    side = max(space.resolutions)
    count = config.batch_size * options.steps
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, space.classes, len(images)))
    classes = tuple(map(str, range(space.classes)))
    half, quarter = (0.5,) * 3, (0.25,) * 3
    data = ImageData("random", split, split, split, split, classes, half, quarter, "random")
    times = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "net.safetensors")
        train(space, data, out, config, lambda _: times.append(time.perf_counter()))
    return {
        "images_per_second": [float(config.batch_size / seconds) for seconds in np.diff(times)[1:]],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def child_speeds(space: SearchSpace, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of forward and backward of the biggest child."""
    batch = options.batch_size
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    network, arch = Supernet(space), space.biggest()
    images = torch.randn(batch, space.in_channels, arch.resolution, arch.resolution)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, space.classes, (batch,))

    def loss(execution: BatchExecution) -> Tensor:
        logits = network.classify(network.features(images, arch, execution).float())
        return functional.cross_entropy(logits, labels)

    def bfloat16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(BatchExecution())

    twin = trainable(network.extract(arch, calibrate(network, arch, images)))
    losses: dict[str, Callable[[], Tensor]] = {
        "torch kernels": lambda: loss(BatchExecution()),
        "fused kernels": lambda: loss(training_execution()),
        "mixed precision": lambda: loss(training_execution(mixed=True)),
        "static twin": lambda: functional.cross_entropy(twin(images), labels),
        "bfloat16 autocast": bfloat16,
    }
    if options.compile:
        compiled = torch.compile(twin, dynamic=False)
        losses["static twin, torch.compile"] = lambda: functional.cross_entropy(
            compiled(images), labels
        )
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(options.turns + 1):
        for name, function in losses.items():
            started = time.perf_counter()
            function().backward()  # type: ignore[no-untyped-call]
            seconds = time.perf_counter() - started
            if name in first:
                times[name].append(seconds * 1e3)
            else:
                first[name] = seconds
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.0f} ms, first {first[name]:.1f} s")
    return {
        name: {"median_ms": statistics.median(values), "first_s": first[name], "samples": values}
        for name, values in times.items()
    }


if __name__ == "__main__":
    main()
