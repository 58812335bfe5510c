"""bignas profile: fills the kernel table of a device for a search space."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from dataclasses import asdict

import click

from bignas.cli.options import device_option, examples, space_argument
from bignas.cli.output import Output, facts, reporting
from bignas.cli.progress import Bars, profile_step

__all__ = ["profile"]


@click.command(
    epilog=examples(
        "bignas profile cifar --device local --minutes 30",
        "bignas profile bignas --minutes 60 --target-error 2",
        "bignas profile my_space.toml",
    )
)
@space_argument
@device_option
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Stop after so long; the next run goes on.",
)
@click.option(
    "--subnets",
    type=click.IntRange(min=1),
    default=80,
    show_default=True,
    help="Whole subnets to measure, beside the kernels.",
)
@click.option(
    "--target-error",
    "target_percent",
    metavar="PERCENT",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop when predictions of fresh subnets are expected to be off by no more on average.",
)
@reporting
def profile(
    output: Output,
    space: str,
    device_name: str,
    minutes: float,
    subnets: int,
    target_percent: float | None,
) -> None:
    """Measure kernels and whole subnets of a search space on a device.

    Subnets tell what the sum of their kernels misses. What makes predictions surest for its time
    comes first, until everything is measured. What is known of other devices, in the store or
    shipped, helps to estimate what has not been measured yet. Everything is kept at once; an
    interrupted run loses little, and the next run goes on.
    """
    from bignas.cli.inputs import require_measurable
    from bignas.compile.objects import ObjectCache
    from bignas.device_db.store import Store
    from bignas.latency.known_tables import known_tables
    from bignas.latency.profile import profile_space
    from bignas.supernet.spaces import load_space

    search_space = load_space(space)
    with Store.open() as store, Bars() as bars:
        device = store.device(device_name)
        require_measurable(device)
        summary = profile_space(
            search_space,
            device,
            store,
            ObjectCache(device.target),
            minutes,
            lambda progress: bars(profile_step(progress)),
            subnets,
            None if target_percent is None else target_percent / 100,
            known_tables(store, device),
        )
    document = {"space": search_space.name, "device": device.name, **asdict(summary)}
    output.show(
        document,
        facts(
            {
                "space": search_space.name,
                "device": device.name,
                "kernels": f"{summary.kernels} of {summary.kernels_of_space}",
                "subnets": summary.subnets,
                "held-out error": "unknown, too few subnets"
                if summary.held_out_error is None
                else f"{summary.held_out_error:.2%}",
                "took": f"{summary.seconds / 60:.1f} minutes, {summary.stopped}",
                "next": f"bignas predictor fit {space} --device {device.name}",
            }
        ),
    )
