"""bignas train: trains a supernet."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from pathlib import Path

import click

from bignas.cli.options import data_option, examples, out_option, space_argument
from bignas.cli.output import Output, facts, reporting
from bignas.cli.progress import Bars, train_step

__all__ = ["train"]


@click.command(
    epilog=examples(
        "bignas train cifar --data digits --out digits.safetensors",
        "bignas train cifar --data cifar10 --out cifar10.safetensors --recipe cifar10",
        "bignas train cifar --data DATA --out own.safetensors --from cifar10-mbconv",
        "torchrun --nproc-per-node 2 --no-python bignas train cifar --data DATA --out CKPT",
    )
)
@space_argument
@data_option
@out_option("CKPT", "The checkpoint file; training resumes when it exists.")
@click.option(
    "--recipe",
    metavar="FILE",
    help="Training options by name (cifar10) or from a TOML file; options given here go first.",
)
@click.option(
    "--from",
    "start",
    metavar="CKPT",
    help="Go on from the weights of a supernet of the same space, shipped ones by name.",
)
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--batch-size", type=int, help="Images a step.")
@click.option("--learning-rate", type=float, help="After the warm-up.")
@click.option("--warmup-epochs", type=float, help="Until the full learning rate.  [default: 1]")
@click.option("--hold-epochs", type=float, help="At the final learning rate.  [default: 2]")
@click.option(
    "--label-epochs",
    type=float,
    help="First epochs in which all children learn from labels.  [default: 1]",
)
@click.option("--max-images", type=int, help="Train on a random subset of this size.")
@click.option("--threads", type=int, help="Threads to train with.  [default: all]")
@click.option("--seed", type=int, help="Of all random numbers.  [default: 0]")
@reporting
def train(
    output: Output,
    space: str,
    data_name: str,
    out: Path,
    recipe: str | None,
    start: str | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    warmup_epochs: float | None,
    hold_epochs: float | None,
    label_epochs: float | None,
    max_images: int | None,
    threads: int | None,
    seed: int | None,
) -> None:
    """Train a supernet once; all its children work as they are.

    A run that was stopped goes on when the same command is given again. Under torchrun its
    processes share each batch.
    """
    from bignas.cli.inputs import require_file_place
    from bignas.supernet.checkpoint import load_checkpoint
    from bignas.supernet.data import load_data
    from bignas.supernet.distributed import is_first_worker
    from bignas.supernet.recipe import TrainConfig
    from bignas.supernet.recipes import load_recipe
    from bignas.supernet.spaces import load_space
    from bignas.supernet.train import train as train_supernet

    search_space = load_space(space)
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_epochs": warmup_epochs,
        "hold_epochs": hold_epochs,
        "label_epochs": label_epochs,
        "max_train_images": max_images,
        "threads": threads,
        "seed": seed,
    }
    options = {key: one for key, one in given.items() if one is not None}
    config = TrainConfig.from_dict((load_recipe(recipe) if recipe else {}) | options)
    require_file_place(out)
    origin = load_checkpoint(start)[1] if start is not None else None
    data = load_data(data_name)
    if not is_first_worker():
        train_supernet(search_space, data, out, config, start=origin)
        return
    with Bars() as bars:
        checkpoint = train_supernet(
            search_space, data, out, config, lambda progress: bars(train_step(progress)), origin
        )
    document = {
        "checkpoint": str(out),
        "space": checkpoint.space.name,
        "data": checkpoint.data_name,
        "classes": len(checkpoint.classes),
        "epochs": checkpoint.epochs_done,
        "steps": checkpoint.step,
    }
    output.show(document, facts(document))
