"""Arguments and options that several commands share, and the form of their examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "PATH",
    "architectures_option",
    "confidence_option",
    "data_option",
    "device_option",
    "examples",
    "out_option",
    "seed_option",
    "space_argument",
]

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

space_argument = click.argument("space")
device_option = click.option(
    "--device",
    "device_name",
    metavar="NAME",
    default="local",
    show_default=True,
    help="A device of `bignas device list`.",
)
architectures_option = click.option(
    "--arch",
    "architectures",
    metavar="FILE",
    multiple=True,
    required=True,
    help="A JSON file (one architecture or a list), smallest, biggest or random:N. Repeatable.",
)
data_option = click.option(
    "--data",
    "data_name",
    metavar="DATA",
    required=True,
    help="digits, a hub name, or a folder that `datasets` can load.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of all random numbers.",
)
confidence_option = click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Share of networks whose latency the intervals are to hold.",
)


def out_option(metavar: str, description: str) -> Callable[[Command], Command]:
    """Return the option --out: where a command writes its result."""
    return click.option("--out", metavar=metavar, type=PATH, required=True, help=description)


def examples(*lines: str) -> str:
    """Return the epilog of a command's help: its examples, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
