"""The parts of the recipe, one changed at a time, at equal epochs. Resumable: run it again.

    python benchmarks/ablation.py --data DATA --recipe cifar10 --epochs 4 --images 20000 \
        --json benchmarks/results/ablation.json

Each variant trains the space from scratch with the same data, order and seed, and its smallest,
middle and biggest child are evaluated on validation images, which are carved from the training
images. Results are written after each variant. --options changes the common recipe, which is that
of BigNAS unless --recipe names another one; --variants chooses from the table; "study" are variants
beyond BigNAS. A variant that changes nothing of the common recipe is left out. With --processes
several are trained at once.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from job_pool import results, threads_each

from bignas.device_db.files import write_atomically
from bignas.supernet.checkpoint import load_checkpoint
from bignas.supernet.data import SplitName, load_data
from bignas.supernet.evaluate import evaluate_architectures
from bignas.supernet.recipe import TrainConfig
from bignas.supernet.recipes import load_recipe
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space
from bignas.supernet.train import train

BASE = "recipe"
ABLATION: dict[str, dict[str, Any]] = {
    BASE: {},
    "without sandwich": {"sandwich": False, "distillation": False, "regularize": "all"},
    "without distillation": {"distillation": False},
    "without zero gamma": {"zero_gamma": False},
    "cosine decay": {"schedule": "cosine"},
    "exponential decay": {"schedule": "exponential"},
    "regularise all": {"regularize": "all"},
    "labels never, BigNAS": {"label_epochs": 0.0, "label_weight": 0.0},
    "SGD for all": {"orthogonal_rate": 0.0, "keep_norms": False, "learning_rate": 0.1},
}
STUDY: dict[str, dict[str, Any]] = {
    "rate 0.2": {"learning_rate": 0.2},
    "rate 0.4": {"learning_rate": 0.4},
    "batch 64": {"batch_size": 64},
    "one random child": {"random_children": 1},
    "label weight 0.3": {"label_weight": 0.3},
    "label weight 0.5": {"label_weight": 0.5},
    "average 0.99": {"average_decay": 0.99},
    "decay 5e-4": {"weight_decay": 5e-4},
    "no smoothing": {"label_smoothing": 0.0},
    "orthogonal 0.05": {"orthogonal_rate": 0.05},
    "whitened stem": {"whiten_stem": True},
}


def main() -> None:
    """Train and evaluate the variants that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", help="built-in name or TOML file")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, help="train on so many; all when left out")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--variants", nargs="*", default=list(ABLATION), metavar="NAME")
    parser.add_argument("--processes", type=int, default=1, help="variants trained at once")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    space, data = load_space(options.space), load_data(options.data)
    space = space.with_classes(len(data.classes))
    archs = {"smallest": space.smallest(), "middle": space.middle(), "biggest": space.biggest()}
    common = {
        **(load_recipe(options.recipe) if options.recipe else {}),
        "evaluate_every_epochs": 0.0,
        "epochs": options.epochs,
        "max_train_images": options.images,
        "threads": threads_each(options.processes),
        **options.options,
    }
    base = TrainConfig.from_dict(common)
    content: dict[str, Any] = {
        "space": space.name,
        "data": data.name,
        "validation_images": len(data.validation),
        "recipe": base.identity(),
        "variants": _earlier(options.json, base),
    }
    configs = {
        name: TrainConfig.from_dict(common | (ABLATION | STUDY)[name])
        for name in options.variants
        if name not in content["variants"]
    }
    configs = {name: one for name, one in configs.items() if name == BASE or one != base}
    outs = [options.runs / f"{name.replace(' ', '-')}.safetensors" for name in configs]
    jobs = [
        partial(train_variant, space, options.data, config, out)
        for config, out in zip(configs.values(), outs, strict=True)
    ]
    for place, _ in results(jobs, options.processes):
        name = list(configs)[place]
        network, _ = load_checkpoint(outs[place])
        found = evaluate_architectures(network, list(archs.values()), data, SplitName.VALIDATION)
        top1 = {child: one.top1 for child, one in zip(archs, found, strict=True)}
        content["variants"][name] = {"change": (ABLATION | STUDY)[name], "top1": top1}
        write_atomically(options.json, f"{json.dumps(content, indent=1)}\n".encode())
        print(name, *(f"{child} {value:.1%}" for child, value in top1.items()), flush=True)


def train_variant(space: SearchSpace, data_name: str, config: TrainConfig, out: Path) -> None:
    """Train one variant, or go on with it, and write its weights to `out`."""
    train(space, load_data(data_name), out, config)


def _earlier(path: Path, recipe: TrainConfig) -> dict[str, Any]:
    """Results of an earlier run of the same recipe."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["recipe"] != recipe.identity():
        raise SystemExit(f"{path} holds results of another recipe: choose another file")
    variants: dict[str, Any] = content["variants"]
    return variants


if __name__ == "__main__":
    main()
