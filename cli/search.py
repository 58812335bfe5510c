"""bignas search: the best child of a supernet under a latency budget."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from bignas.cli.options import (
    data_option,
    device_option,
    examples,
    out_option,
    seed_option,
)
from bignas.cli.output import (
    Output,
    facts,
    interval_text,
    milliseconds,
    percent,
    reporting,
    table,
)
from bignas.cli.progress import Bars, search_step

__all__ = ["result_parts", "search"]


@click.command(
    epilog=examples(
        "bignas search my.safetensors --data digits --device local --budget 1.5ms --out runs/a",
        "bignas search my.safetensors --data digits --budget 800us --out runs/b --seed 1",
    )
)
@click.argument("checkpoint", metavar="CKPT")
@data_option
@device_option
@click.option("--budget", required=True, metavar="TIME", help="With its unit: 1.5ms, 800us, 0.01s.")
@out_option("RUN", "The folder of the run; a run of the same settings goes on.")
@click.option("--strategy", default="evolution", show_default=True, help="evolution or random.")
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    default=150,
    show_default=True,
    help="Architectures whose accuracy is evaluated.",
)
@click.option(
    "--finalists",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Architectures that are compiled and measured at the end.",
)
@click.option(
    "--validation-images",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Images that accuracy is evaluated on, at most.",
)
@seed_option
@reporting
def search(
    output: Output,
    checkpoint: str,
    data_name: str,
    device_name: str,
    budget: str,
    out: Path,
    strategy: str,
    evaluations: int,
    finalists: int,
    validation_images: int,
    seed: int,
) -> None:
    """Find the best child of a supernet under a latency budget.

    Latency comes from the device's predictor; the best children are compiled and measured, and the
    one delivered keeps the budget measured. Exit code 1 when no child can.
    """
    from bignas.search.constraint import LatencyBudget

    budget_ms = LatencyBudget.parse(budget).budget_ms

    from bignas.cli.inputs import require_folder_place, require_measurable
    from bignas.compile.objects import ObjectCache
    from bignas.device_db.store import Store
    from bignas.latency.predictors import load_predictor
    from bignas.search.pipeline import SearchConfig, run_search
    from bignas.search.strategy import create_strategy
    from bignas.supernet.checkpoint import load_checkpoint
    from bignas.supernet.data import load_data

    require_folder_place(out)
    config = SearchConfig(
        budget_ms=budget_ms,
        strategy=strategy,
        evaluations=evaluations,
        finalists=finalists,
        seed=seed,
        validation_images=validation_images,
    )
    with Store.open() as store, Bars() as bars:
        device = store.device(device_name)
        require_measurable(device)
        network, content = load_checkpoint(checkpoint)
        create_strategy(strategy, network.space, seed)  # an unknown one is refused early
        predictor = load_predictor(network.space, device)
        data = load_data(data_name)
        result = run_search(
            network,
            content,
            data,
            device,
            store,
            ObjectCache(device.target),
            predictor,
            config,
            out,
            lambda progress: bars(search_step(progress)),
        )
    document = result.to_dict()
    output.show(document, *result_parts(document, out))


def result_parts(document: Mapping[str, Any], out: Path) -> list[RenderableType]:
    """Return what people see of a result.json: the best child, and the front around it."""
    best = document["best"]
    summary = facts(
        {
            "device": document["device"],
            "budget": milliseconds(document["budget_ms"]),
            "measured": milliseconds(best["measured_ms"]),
            "predicted": f"{milliseconds(best['predicted_ms'])}"
            f" ({interval_text(best['interval_ms'])})",
            "top-1": f"{percent(best['top1'])} on validation images,"
            f" {percent(best.get('test_top1'))} on test images",
            "bundle": out / document["bundle"],
        }
    )
    rows = [
        (
            percent(one["top1"]),
            milliseconds(one["predicted_ms"]),
            milliseconds(one["measured_ms"]),
            f"{one['macs'] / 1e6:.2f}M",
            one["params"],
        )
        for one in document["front"]
    ]
    return [summary, "", table(("top-1", "predicted", "measured", "MACs", "parameters"), rows)]
