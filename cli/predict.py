"""bignas predict: latencies of architectures, without building them."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

import click

from bignas.cli.options import (
    architectures_option,
    device_option,
    examples,
    seed_option,
    space_argument,
)
from bignas.cli.output import (
    Output,
    architecture_text,
    interval_text,
    milliseconds,
    reporting,
    table,
)

__all__ = ["predict"]


@click.command(
    epilog=examples(
        "bignas predict cifar --arch biggest --device local",
        "bignas predict cifar --arch mine.json --arch random:5 --json",
    )
)
@space_argument
@architectures_option
@device_option
@seed_option
@reporting
def predict(
    output: Output, space: str, architectures: tuple[str, ...], device_name: str, seed: int
) -> None:
    """Predict the latency of architectures, each with an interval."""
    from bignas.cli.inputs import read_architectures
    from bignas.device_db.store import Store
    from bignas.latency.predictors import load_predictor
    from bignas.supernet.spaces import load_space

    search_space = load_space(space)
    chosen = read_architectures(architectures, search_space, seed)
    with Store.open() as store:
        device = store.device(device_name)
    predictions = load_predictor(search_space, device).predict(chosen)
    entries = [
        {
            "arch": architecture.to_dict(),
            "latency_ms": float(latency_ms),
            "interval_ms": [float(low_ms), float(high_ms)],
        }
        for architecture, latency_ms, low_ms, high_ms in zip(
            chosen, predictions.latency_ms, predictions.low_ms, predictions.high_ms, strict=True
        )
    ]
    rows = [
        (
            milliseconds(float(predictions.latency_ms[index])),
            interval_text((float(predictions.low_ms[index]), float(predictions.high_ms[index]))),
            architecture_text(architecture),
        )
        for index, architecture in enumerate(chosen)
    ]
    output.show(entries, table(("latency", "interval", "architecture"), rows))
