"""bignas search: the best child of a supernet under latency budgets and other limits."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from bignas.cli.options import data_option, examples, out_option, seed_option
from bignas.cli.output import (
    Output,
    chance,
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
        "bignas search my.safetensors --data digits --device local:1.5ms --device old:4ms"
        " --confidence 0.99 --max-params 300k --out runs/c",
        "bignas search my.safetensors --data digits --device local:1.5ms --device old:4ms --each"
        " --out runs/d",
    )
)
@click.argument("checkpoint", metavar="CKPT")
@data_option
@click.option(
    "--device",
    "devices",
    metavar="NAME[:TIME]",
    multiple=True,
    default=("local",),
    show_default="local",
    help="A device of `bignas device list`, with a budget of its own. Repeatable: the child keeps"
    " all budgets.",
)
@click.option(
    "--each",
    is_flag=True,
    help="Search for each device apart, in RUN/NAME, and measure each winner on all devices.",
)
@click.option("--budget", metavar="TIME", help="With its unit: 1.5ms, 800us, 0.01s.")
@click.option(
    "--confidence",
    type=float,
    default=0.95,
    show_default=True,
    help="Probability, as predicted, with which a child has to keep each budget.",
)
@click.option("--max-macs", metavar="COUNT", help="Multiply-accumulates at most, such as 12.5M.")
@click.option("--max-params", metavar="COUNT", help="Parameters at most, such as 300k.")
@click.option(
    "--max-memory", metavar="SIZE", help="Weights and workspace at most, such as 1.5MB or 512KiB."
)
@click.option("--max-bundle", metavar="SIZE", help="All files of the bundle at most.")
@click.option(
    "--objective",
    type=click.Choice(["accuracy-latency", "accuracy"]),
    default="accuracy-latency",
    show_default=True,
    help="Whether the front below the budget is measured, too.",
)
@out_option("RUN", "The folder of the run; a run of the same settings goes on.")
@click.option(
    "--strategy",
    default="guided",
    show_default=True,
    help="guided, coarse-to-fine, local, evolution, nsga2, random, exhaustive, or one of an"
    " installed package.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    show_default="150, or 12 that an accuracy predictor chooses",
    help="Architectures whose accuracy is evaluated.",
)
@click.option(
    "--accuracy-predictor/--no-accuracy-predictor",
    "with_accuracy",
    default=True,
    show_default=True,
    help="Let predicted accuracies choose what is evaluated, where `bignas accuracy fit` was run.",
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
    help="Images that accuracy is evaluated on, at most; all, where predictions choose.",
)
@seed_option
@reporting
def search(
    output: Output,
    checkpoint: str,
    data_name: str,
    devices: tuple[str, ...],
    each: bool,
    budget: str | None,
    confidence: float,
    max_macs: str | None,
    max_params: str | None,
    max_memory: str | None,
    max_bundle: str | None,
    objective: str,
    out: Path,
    strategy: str,
    evaluations: int | None,
    with_accuracy: bool,
    finalists: int,
    validation_images: int,
    seed: int,
) -> None:
    """Find the best child of a supernet under latency budgets and other limits.

    Latency comes from the predictor of each device; the best children are compiled and measured,
    and the one delivered keeps the budgets measured. Exit code 1 when no child can.
    """
    from bignas.search.constraint import Limits, device_budgets, parse_bytes, parse_count

    budgets = device_budgets(devices, budget)
    limits = Limits(
        macs=None if max_macs is None else parse_count(max_macs),
        params=None if max_params is None else parse_count(max_params),
        memory_bytes=None if max_memory is None else parse_bytes(max_memory),
        bundle_bytes=None if max_bundle is None else parse_bytes(max_bundle),
    )

    from bignas.cli.inputs import require_folder_place, require_measurable
    from bignas.compile.objects import ObjectCache
    from bignas.device_db.store import Store
    from bignas.latency.predictors import load_predictor
    from bignas.search.context import SearchProgress
    from bignas.search.many import run_searches
    from bignas.search.pipeline import run_search
    from bignas.search.requirements import Site
    from bignas.search.result import (
        EVALUATIONS,
        PRESELECTED_EVALUATIONS,
        Objective,
        SearchConfig,
    )
    from bignas.search.strategy import create_strategy
    from bignas.supernet.accuracy_files import accuracy_path, find_accuracy_predictor
    from bignas.supernet.checkpoint import load_checkpoint
    from bignas.supernet.children import evaluation_processes
    from bignas.supernet.data import load_data

    require_folder_place(out)
    config = SearchConfig(
        budget_ms=next(iter(budgets.values())).budget_ms,
        strategy=strategy,
        evaluations=evaluations or EVALUATIONS,
        finalists=finalists,
        seed=seed,
        validation_images=validation_images,
        confidence=confidence,
        limits=limits,
        objective=Objective(objective),
    )
    with Store.open() as store, Bars() as bars:
        found = [store.device(name) for name in budgets]
        for device in found:
            require_measurable(device)
        network, content = load_checkpoint(checkpoint)
        create_strategy(strategy, network.space, seed)  # an unknown one is refused early
        sites = [
            Site(
                device,
                ObjectCache(device.target),
                load_predictor(network.space, device),
                budgets[device.name].budget_ms,
            )
            for device in found
        ]
        data = load_data(data_name)
        accuracy = None
        if with_accuracy:
            accuracy = find_accuracy_predictor(checkpoint, content, data.digest)
            if accuracy is None and accuracy_path(checkpoint).exists():
                output.note(f"{accuracy_path(checkpoint)} is about other weights or data: not used")
        if accuracy is not None and evaluations is None:
            config = replace(config, evaluations=PRESELECTED_EVALUATIONS)

        def report(progress: SearchProgress) -> None:
            bars(search_step(progress))

        processes = evaluation_processes()
        if each:
            many = run_searches(
                network, content, data, store, sites, config, out, report, accuracy, processes
            )
            document = many.to_dict()
            parts = cross_parts(document)
        else:
            first, *others = sites
            result = run_search(
                network, content, data, first.device, store, first.cache, first.predictor,
                config, out, report, others, accuracy, processes,
            )  # fmt: skip
            document = result.to_dict()
            parts = result_parts(document, out)
    output.show(document, *parts)


def cross_parts(document: Mapping[str, Any]) -> list[RenderableType]:
    """Return what people see of a cross.json: what each winner costs on each device."""
    columns = ("winner of", "top-1", *(f"on {name}" for name in document["runs"]))
    rows = [
        (
            one["winner_of"],
            percent(one["top1"]),
            *(milliseconds(at["measured_ms"]) for at in one["devices"]),
        )
        for one in document["winners"]
    ]
    return [table(columns, rows)]


def result_parts(document: Mapping[str, Any], out: Path) -> list[RenderableType]:
    """Return what people see of a result.json: the best child, and the front around it."""
    best = document["best"]
    parts: list[RenderableType] = []
    for at in best["devices"]:
        figures: dict[str, object] = {
            "device": at["device"],
            "budget": f"{milliseconds(at['budget_ms'])}, kept with probability"
            f" {chance(at['probability'])} as predicted",
            "measured": milliseconds(at["measured_ms"]),
            "predicted": f"{milliseconds(at['predicted_ms'])} ({interval_text(at['interval_ms'])})",
            "bundle": out / document["bundles"][at["device"]],
        }
        parts.append(facts(figures))
    parts.append(
        facts(
            {
                "top-1": f"{percent(best['top1'])} on validation images,"
                f" {percent(best.get('test_top1'))} on test images"
            }
        )
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
    front = table(("top-1", "predicted", "measured", "MACs", "parameters"), rows)
    return [*parts, "", front]
