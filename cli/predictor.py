"""bignas predictor: fits latency predictors and shows how good they are."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

import click

from bignas.cli.options import (
    confidence_option,
    device_option,
    examples,
    seed_option,
    space_argument,
)
from bignas.cli.output import Output, facts, percent, reporting
from bignas.cli.progress import Bars, count_step

__all__ = ["predictor"]


@click.group()
def predictor() -> None:
    """Fit and evaluate latency predictors."""


@predictor.command(epilog=examples("bignas predictor fit cifar --device local"))
@space_argument
@device_option
@confidence_option
@reporting
def fit(output: Output, space: str, device_name: str, confidence: float) -> None:
    """Fit the latency predictor of a space to all that was measured on a device."""
    from bignas.device_db.store import Store
    from bignas.latency.fitting import fit_predictor
    from bignas.latency.predictors import save_predictor
    from bignas.supernet.spaces import load_space

    search_space = load_space(space)
    with Store.open() as store:
        device = store.device(device_name)
        fitted = fit_predictor(search_space, device, store, confidence)
    path = save_predictor(fitted, device)
    document = {
        "space": search_space.name,
        "device": device.name,
        "kernels": len(fitted.table),
        "networks": fitted.networks,
        "confidence": fitted.confidence,
        "path": str(path),
    }
    output.show(document, facts(document))


@predictor.command(epilog=examples("bignas predictor evaluate cifar --device local --subnets 40"))
@space_argument
@device_option
@click.option(
    "--subnets",
    metavar="N",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Fresh subnets, compiled and measured now.",
)
@seed_option
@reporting
def evaluate(output: Output, space: str, device_name: str, subnets: int, seed: int) -> None:
    """Compare predictions with subnets that were never measured, compiled and measured now.

    Each is measured in several processes: how far two of them differ is the floor of any
    prediction's error. Subnets of the profile are measured again beside them: predictions are
    shifted by what the machine has changed by since.
    """
    from bignas.cli.inputs import require_measurable
    from bignas.compile.objects import ObjectCache
    from bignas.device_db.store import Store
    from bignas.latency.evaluation import evaluate_predictor
    from bignas.latency.predictors import load_predictor
    from bignas.supernet.spaces import load_space

    search_space = load_space(space)
    with Store.open() as store, Bars() as bars:
        device = store.device(device_name)
        require_measurable(device)
        fitted = load_predictor(search_space, device)
        step = count_step("measuring subnets")
        result = evaluate_predictor(
            fitted,
            search_space,
            device,
            store,
            ObjectCache(device.target),
            subnets,
            seed,
            lambda done, total: bars(step(done, total)),
        )
    output.show(
        {"space": search_space.name, "device": device.name, **result.to_dict()},
        facts(
            {
                "subnets": result.n,
                "mean error": percent(result.mape),
                "within 5%": percent(result.within_5),
                "within 10%": percent(result.within_10),
                "rank correlation": f"{result.spearman:.4f}",
                "interval holds": f"{percent(result.coverage)}, meant {percent(result.confidence)}",
                "repeatability": percent(result.repeatability),
                "drift since the profile": (
                    f"{percent(min(result.drift))} to {percent(max(result.drift))},"
                    f" {percent(result.drift_per_doubling)} more for twice the latency, taken into"
                    f" account ({percent(result.unshifted_mape)} mean error without)"
                ),
                "kernel sum alone": f"{percent(result.kernel_sum_mape)} mean error",
            }
        ),
    )
