"""Children as they are in the supernet against the same networks trained alone. Resumable.

    python benchmarks/standalone.py CKPT --data DATA --children 5 \
        --json benchmarks/results/standalone.json

The claim of single-stage training (BigNAS, section 4): a child needs no training of its own. Each
child, spread over the range of MACs, is trained from scratch for the same number of epochs with the
same data, order, augmentation, rate and regularisation as the supernet, by the same trainer, in a
space that holds nothing else: one child a step, which learns from the labels. Both are evaluated
alike, batch norms recalibrated. Stopped at any time it goes on where it was; results are written
after each child. With --processes several children are trained at once, the biggest first, and
share the processors: each with fewer threads, which wait less for each other.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from job_pool import results, threads_each

from bignas.device_db.errors import ArchitectureError
from bignas.device_db.files import write_atomically
from bignas.device_db.store import Store
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint, load_checkpoint
from bignas.supernet.children import ChildEvaluator
from bignas.supernet.data import ImageData, SplitName, load_data
from bignas.supernet.drawing import spread_children
from bignas.supernet.ranking import spearman
from bignas.supernet.recipe import TrainConfig
from bignas.supernet.space import SearchSpace
from bignas.supernet.train import TrainProgress, train

SPLITS = (SplitName.VALIDATION, SplitName.TEST)
TOP1 = ("inherited_top1", "standalone_top1")
SHOWN_EVERY = 500  # steps


def main() -> None:
    """Train the children that have no result yet, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--children", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the children that are drawn")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--processes", type=int, default=1, help="children trained at once")
    parser.add_argument("--runs", type=Path, default=Path("runs/standalone"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    _, checkpoint = load_checkpoint(options.checkpoint)
    data = load_data(options.data)
    shared = {"threads": threads_each(options.processes)}
    config = recipe(checkpoint, shared | options.options)
    content: dict[str, Any] = {
        "space": checkpoint.space.name,
        "data": data.name,
        "weights": checkpoint.digest,
        "epochs": checkpoint.epochs_done,
        "recipe": config.identity(),
        "images": {split.value: len(data.split(split)) for split in SPLITS},
    }
    known = earlier(options.json, content)
    space = checkpoint.space
    archs = spread_children(
        space, options.children, options.seed, lambda arch: can_be_alone(space, arch)
    )
    missing = [arch for arch in reversed(archs) if arch.key not in known]
    outs = [
        options.runs / f"{space.macs(arch)}-{archs.index(arch)}.safetensors" for arch in missing
    ]
    jobs = [
        partial(train_alone, space, arch, options.data, config, out)
        for arch, out in zip(missing, outs, strict=True)
    ]
    with Store.open() as store:
        for place, _ in results(jobs, options.processes):
            arch, (_, alone) = missing[place], load_checkpoint(outs[place])
            known[arch.key] = row = compare(checkpoint, alone, arch, data, store)
            rows = [known[arch.key] for arch in archs if arch.key in known]
            result = {**content, "summary": summary(rows), "children": rows}
            write_atomically(options.json, f"{json.dumps(result, indent=1)}\n".encode())
            print(json.dumps({key: row[key] for key in ("macs", *TOP1)}), flush=True)
    print(json.dumps(summary([known[arch.key] for arch in archs]), indent=1))


def recipe(checkpoint: Checkpoint, changes: dict[str, Any]) -> TrainConfig:
    """The supernet's own recipe, without what needs other children."""
    alone = {"distillation": False, "label_weight": 0.0, "evaluate_every_epochs": 0.0}
    return TrainConfig.from_dict({**checkpoint.config, **alone, **changes})


def can_be_alone(space: SearchSpace, arch: Architecture) -> bool:
    """Whether widths that are equal by chance do not become a shortcut."""
    try:
        space.only(arch)
    except ArchitectureError:
        return False
    return True


def train_alone(
    space: SearchSpace, arch: Architecture, data_name: str, config: TrainConfig, out: Path
) -> None:
    """Train one child alone, or go on with it, and write its weights to `out`."""
    shown = partial(show, space.macs(arch))
    train(space.only(arch), load_data(data_name), out, config, shown)


def compare(
    checkpoint: Checkpoint, alone: Checkpoint, arch: Architecture, data: ImageData, store: Store
) -> dict[str, Any]:
    """Accuracies of one child out of the supernet and of the one trained alone."""
    row: dict[str, Any] = {
        "arch": arch.to_dict(),
        "macs": checkpoint.space.macs(arch),
        "params": checkpoint.space.params(arch),
    }
    for name, one in zip(TOP1, (checkpoint, alone), strict=True):
        row[name] = {
            split.value: ChildEvaluator(one, data, store, split).evaluate([arch])[0]
            for split in SPLITS
        }
    return row


def show(macs: int, progress: TrainProgress) -> None:
    """Where the training of a child stands."""
    if progress.step % SHOWN_EVERY == 0 or progress.step == progress.total_steps:
        at = f"step {progress.step} of {progress.total_steps}"
        left = f"{progress.eta_seconds / 60:.0f} min left"
        print(f"{macs / 1e6:.1f} MMACs: {at}, loss {progress.loss:.3f}, {left}", flush=True)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By split: mean of inherited minus standalone accuracy (fractions), and rank correlation."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        inherited, standalone = (
            np.array([row[name][split.value] for row in rows]) for name in TOP1
        )
        rank = spearman(inherited, standalone)
        found[split.value] = {
            "mean_difference": float((inherited - standalone).mean()),
            "worst_difference": float((inherited - standalone).min()),
            "spearman": rank if np.isfinite(rank) else None,
            "n": len(rows),
        }
    return found


def earlier(path: Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results of an earlier run on the same weights and recipe, by the key of the architecture."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if any(found.get(key) != value for key, value in content.items()):
        raise SystemExit(f"{path} holds results of other weights or another recipe: move it away")
    return {Architecture.from_dict(row["arch"]).key: row for row in found["children"]}


if __name__ == "__main__":
    main()
