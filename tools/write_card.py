"""Write the card of a trained supernet, from files.

    python tools/write_card.py CKPT --data DATA

Reads CKPT and CKPT.metrics.jsonl (and, where it was fitted, the accuracy predictor beside it),
evaluates ten children spread over the range of MACs on validation and test images (remembered in
the store), and writes CKPT's name with the ending .md beside it, or to --out.
"""

import argparse
import json
import math
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from bignas.device_db.errors import InputError
from bignas.device_db.files import sha256_of, write_atomically
from bignas.device_db.store import Store
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.accuracy_files import find_accuracy_predictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint, load_checkpoint
from bignas.supernet.children import ChildEvaluator, evaluation_processes
from bignas.supernet.data import ImageData, SplitName, load_data
from bignas.supernet.drawing import spread_children
from bignas.supernet.recipe import TrainConfig

CHILDREN = 10
CURVE_ROWS = 16  # at most


def main() -> None:
    """Evaluate the children and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--source", help="a sentence about where the images come from")
    parser.add_argument("--metrics", type=Path, help="by default beside the checkpoint")
    parser.add_argument("--out", type=Path, help="by default beside the checkpoint")
    options = parser.parse_args()
    path: Path = options.checkpoint
    metrics = options.metrics or path.with_name(f"{path.name}.metrics.jsonl")
    lines = read_metrics(metrics)
    _, checkpoint = load_checkpoint(path)
    data = load_data(options.data)
    archs = spread_children(checkpoint.space, CHILDREN, seed=0)
    with Store.open() as store:
        top1 = [
            ChildEvaluator(checkpoint, data, store, split).evaluate(archs, evaluation_processes())
            for split in (SplitName.VALIDATION, SplitName.TEST)
        ]
    predictor = find_accuracy_predictor(path, checkpoint, data.digest)
    name = path.name.removesuffix(".safetensors")
    card = "\n\n".join(
        [
            f"# {name}",
            introduction(name, checkpoint, sha256_of(path)),
            data_part(data, checkpoint, options.source),
            children_part(checkpoint, archs, top1),
            *predictor_part(predictor),
            recipe_part(checkpoint),
            curves_part(lines),
            licence_part(),
        ]
    )
    write_atomically(options.out or path.with_name(f"{name}.md"), f"{card}\n".encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def introduction(name: str, checkpoint: Checkpoint, digest: str) -> str:
    """What it is."""
    space = checkpoint.space
    small, big = space.smallest(), space.biggest()
    return (
        f"A supernet of the space `{space.name}`: {space.size():,} children between"
        f" {space.macs(small) / 1e6:.2f} and {space.macs(big) / 1e6:.2f} million"
        f" multiply-accumulates ({space.params(small):,} and {space.params(big):,} parameters)."
        f" All work without training of their own. `bignas search {name} --data DATA --budget TIME"
        f" --out RUN` takes it by name. SHA-256 of the file: `{digest}`."
    )


def data_part(data: ImageData, checkpoint: Checkpoint, source: str | None) -> str:
    """What it was trained and evaluated on."""
    counts = ", ".join(f"{len(data.split(split)):,} {split.value}" for split in SplitName)
    text = (
        f"`{checkpoint.data_name}`, {len(checkpoint.classes)} classes"
        f" ({', '.join(checkpoint.classes)}); images: {counts}. Calibration images are training"
        " images that batch norms are recalibrated with; validation images are carved from the"
        " training images with a fixed seed and choose architectures; test images are for reports"
        f" only. Digest of classes, images and labels: `{checkpoint.data_digest}`."
    )
    return "\n\n".join(["## Data", text, *([source] if source else [])])


def children_part(
    checkpoint: Checkpoint, archs: Sequence[Architecture], top1: Sequence[Sequence[float]]
) -> str:
    """A table of children from small to big."""
    rows = [
        (
            f"{checkpoint.space.macs(arch) / 1e6:.2f}",
            f"{checkpoint.space.params(arch):,}",
            str(arch.resolution),
            f"{100 * validation:.2f}",
            f"{100 * test:.2f}",
        )
        for arch, validation, test in zip(archs, *top1, strict=True)
    ]
    head = ("million MACs", "parameters", "resolution", "validation top-1, %", "test top-1, %")
    return "## Children, as they are\n\n" + table(head, rows)


def predictor_part(predictor: AccuracyPredictor | None) -> list[str]:
    """What its accuracy predictor was fitted to, if there is one."""
    if predictor is None:
        return []
    error = predictor.error
    text = (
        "## Accuracy predictor\n\nFitted to"
        f" {len(predictor.correct)} children, evaluated on {predictor.setting.images:,} validation"
        f" images; cross-validated mean absolute error {100 * error.mae:.2f} points, Spearman"
        f" {error.spearman:.3f}."
    )
    return [text]


def recipe_part(checkpoint: Checkpoint) -> str:
    """All options of the training, those that are no defaults first."""
    defaults = TrainConfig().to_dict()
    items = sorted(checkpoint.config.items(), key=lambda item: item[1] == defaults.get(item[0]))
    rows = [(f"`{name}`", f"`{value}`") for name, value in items]
    text = f"{checkpoint.epochs_done} epochs, {checkpoint.step:,} steps."
    if checkpoint.start is not None:
        text += (
            f" They began with the weights of digest `{checkpoint.start.digest}`, which had been"
            f" trained for {checkpoint.start.epochs} epochs."
        )
    return f"## Recipe\n\n{text}\n\n" + table(("option", "value"), rows)


def curves_part(lines: Sequence[dict[str, Any]]) -> str:
    """Loss and validation accuracy while it trained, thinned out."""
    evaluated = [line for line in lines if "top1" in line]
    step = max(1, math.ceil((len(evaluated) - 1) / (CURVE_ROWS - 1)))
    kept = evaluated[::-1][::step][::-1]  # the last one always
    rows = [
        (
            str(line["epoch"] + 1),
            f"{line['losses'][0]:.3f}",
            *(f"{100 * value:.1f}" for value in line["top1"].values()),
        )
        for line in kept
    ]
    names = list(kept[0]["top1"]) if kept else []
    head = ("epoch", "loss of the biggest child", *(f"{name}, top-1, %" for name in names))
    note = "Validation images, as far as the recipe's `evaluate_images` goes."
    return f"## Curves\n\n{note}\n\n" + table(head, rows)


def licence_part() -> str:
    """The licence of the weights: that of the package."""
    licence = metadata("bignas")["License-Expression"]
    return f"## Licence\n\nThe weights are under the licence of bignas, {licence}."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
