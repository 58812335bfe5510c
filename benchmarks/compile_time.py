"""Seconds that `bignas compile` takes for children of a space whose kernels are tuned and cached.

    python benchmarks/compile_time.py --json benchmarks/results/compile_time.json

Whole processes are timed, from the start of Python to the written bundle, ONNX export included, for
the smallest child, one in the middle and the biggest; and the same within one process, as in a
search, which imports and loads what it needs once. A first run of each, which is not counted, tunes
what the store lacks and fills the caches. The weights are those of a supernet after one step:
compiling takes the same time whatever their values. Processor seconds stand beside, as they
tell more on a machine that others use too; they count all cores.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bignas.compile.objects import ObjectCache
from bignas.device_db.probe import LOCAL, probe_local
from bignas.device_db.store import Store
from bignas.latency.subnets import spread_sample
from bignas.search.deliver import deliver_child
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import load_checkpoint
from bignas.supernet.data import DIGITS, load_data
from bignas.supernet.spaces import load_space

NAMES = ("smallest", "middle", "biggest")
PROGRAM = (sys.executable, "-c", "import sys; from bignas.cli.main import main; sys.exit(main())")


def main() -> None:
    """Time the compilation of three children and write every sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    space = load_space(options.space)
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "supernet.safetensors"
        few = ("--epochs", "1", "--max-images", "64", "--batch-size", "64")
        run(["train", options.space, "--data", DIGITS, "--out", checkpoint, *few])
        children = spread_sample(space, len(NAMES), np.random.default_rng(0))
        for which, child in zip(NAMES, children, strict=True):
            file = folder / f"{which}.json"
            file.write_text(json.dumps(child.to_dict()), encoding="utf-8")
            command = ["compile", checkpoint, "--arch", file, "--data", DIGITS]
            command += ["--out", folder / which]
            run(command)
            samples = [run(command) for _ in range(options.repeats)]
            within = within_process(checkpoint, child, folder / which, options.repeats)
            entry = {
                "child": which,
                "arch": child.to_dict(),
                "macs": space.macs(child),
                "median_seconds": statistics.median(wall for wall, _ in samples),
                "seconds": [wall for wall, _ in samples],
                "processor_seconds": [busy for _, busy in samples],
                "median_seconds_within_process": statistics.median(within),
                "seconds_within_process": within,
            }
            entries.append(entry)
            busy_seconds = statistics.median(busy for _, busy in samples)
            print(
                f"{which}: {entry['median_seconds']:.1f} s, processor {busy_seconds:.1f} s;"
                f" within a process {entry['median_seconds_within_process']:.1f} s"
            )
    here = probe_local()
    result = {
        "kind": "measured",
        "space": space.name,
        "cpu": here.cpu_model,
        "cores": here.cores,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "children": entries,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def within_process(checkpoint: Path, child: Architecture, out: Path, repeats: int) -> list[float]:
    """Seconds of extraction, calibration, export, compilation and checks, after a first time."""
    network, content = load_checkpoint(checkpoint)
    data = load_data(DIGITS)
    seconds: list[float] = []
    with Store.open() as store:
        device = store.device(LOCAL)
        cache = ObjectCache(device.target)
        for _ in range(repeats + 1):
            start = time.perf_counter()
            deliver_child(network, content, child, data, device, store, cache, out)
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


def run(arguments: list[Any]) -> tuple[float, float]:
    """Run a command of bignas; return its seconds by the clock and on processors."""
    before = _children_seconds()
    start = time.perf_counter()
    command = [*PROGRAM, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start, _children_seconds() - before


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
