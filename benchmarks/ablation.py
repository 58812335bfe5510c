"""The parts of the recipe, one changed at a time, at equal epochs. Resumable: run it again.

    python benchmarks/ablation.py --data DATA --epochs 4 --json benchmarks/results/ablation.json

Each variant trains the space from scratch with the same data, order and seed, and its smallest,
middle and biggest child are evaluated on validation images, which are carved from the training
images. Results are written after each variant. --options changes the common recipe, and
--variants chooses from the table; "study" are variants beyond BigNAS.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bignas.supernet.checkpoint import load_checkpoint
from bignas.supernet.data import SplitName, load_data
from bignas.supernet.evaluate import evaluate_architectures
from bignas.supernet.recipe import TrainConfig
from bignas.supernet.spaces import load_space
from bignas.supernet.train import train

ABLATION: dict[str, dict[str, Any]] = {
    "recipe": {},
    "without sandwich": {"sandwich": False, "distillation": False, "regularize": "all"},
    "without distillation": {"distillation": False},
    "without zero gamma": {"zero_gamma": False},
    "cosine decay": {"schedule": "cosine"},
    "exponential decay": {"schedule": "exponential"},
    "regularise all": {"regularize": "all"},
    "labels never, BigNAS": {"label_epochs": 0.0, "label_weight": 0.0},
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
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--variants", nargs="*", default=list(ABLATION), metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    space, data = load_space(options.space), load_data(options.data)
    space = space.with_classes(len(data.classes))
    archs = {"smallest": space.smallest(), "middle": space.middle(), "biggest": space.biggest()}
    common = {"epochs": options.epochs, **options.options}
    content: dict[str, Any] = {
        "space": space.name,
        "data": data.name,
        "validation_images": len(data.validation),
        "recipe": TrainConfig(**common).to_dict(),
        "variants": _earlier(options.json, TrainConfig(**common)),
    }
    for name in options.variants:
        if name in content["variants"]:
            continue
        config = TrainConfig(**(common | (ABLATION | STUDY)[name]))
        out = options.runs / f"{name.replace(' ', '-')}.safetensors"
        train(space, data, out, config)
        network, _ = load_checkpoint(out)
        found = evaluate_architectures(network, list(archs.values()), data, SplitName.VALIDATION)
        top1 = {child: one.top1 for child, one in zip(archs, found, strict=True)}
        content["variants"][name] = {"change": (ABLATION | STUDY)[name], "top1": top1}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(name, *(f"{child} {value:.1%}" for child, value in top1.items()), flush=True)


def _earlier(path: Path, recipe: TrainConfig) -> dict[str, Any]:
    """Results of an earlier run of the same recipe."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["recipe"] != recipe.to_dict():
        raise SystemExit(f"{path} holds results of another recipe: choose another file")
    variants: dict[str, Any] = content["variants"]
    return variants


if __name__ == "__main__":
    main()
