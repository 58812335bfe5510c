"""bignas evaluate: accuracy of children as they are."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

import click

from bignas.cli.options import architectures_option, data_option, examples, seed_option
from bignas.cli.output import Output, architecture_text, percent, reporting, table
from bignas.cli.progress import Bars, count_step

__all__ = ["evaluate"]

SPLITS = ("train", "calibration", "validation", "test")


@click.command(
    epilog=examples(
        "bignas evaluate digits.safetensors --arch biggest --data digits --split test",
        "bignas evaluate digits.safetensors --arch random:5 --data digits --split validation",
    )
)
@click.argument("checkpoint", metavar="CKPT")
@architectures_option
@data_option
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="test",
    show_default=True,
    help="The images to evaluate on.",
)
@click.option("--max-images", type=click.IntRange(min=1), help="Use the first so many images only.")
@seed_option
@reporting
def evaluate(
    output: Output,
    checkpoint: str,
    architectures: tuple[str, ...],
    data_name: str,
    split: str,
    max_images: int | None,
    seed: int,
) -> None:
    """Evaluate children of a supernet as they are.

    Batch norm is recalibrated for each of them, nothing is retrained.
    """
    from bignas.cli.inputs import read_architectures
    from bignas.supernet.checkpoint import load_checkpoint
    from bignas.supernet.data import load_data
    from bignas.supernet.evaluate import evaluate_architectures

    network, content = load_checkpoint(checkpoint)
    chosen = read_architectures(architectures, network.space, seed)
    data = content.align(load_data(data_name))
    results = []
    with Bars() as bars:
        step = count_step("evaluating")
        for done, architecture in enumerate(chosen, 1):
            results += evaluate_architectures(network, [architecture], data, split, max_images)
            bars(step(done, len(chosen)))
    rows = [
        (percent(one.top1), f"{one.macs / 1e6:.2f}M", one.params, architecture_text(one.arch))
        for one in results
    ]
    output.show(
        [one.to_dict() for one in results],
        table(("top-1", "MACs", "parameters", "architecture"), rows),
    )
