"""bignas demo: the whole loop on built-in data."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from bignas.cli.options import PATH, examples
from bignas.cli.output import Output, reporting
from bignas.cli.progress import Bars, Step, profile_step, search_step, train_step
from bignas.cli.search import result_parts

__all__ = ["demo"]

STEPS: Final[Mapping[str, Callable[[Any], Step]]] = {
    "train": train_step,
    "profile": profile_step,
    "search": search_step,
}


@click.command(epilog=examples("bignas demo", "bignas demo --out runs/demo"))
@click.option(
    "--out",
    metavar="DIR",
    type=PATH,
    default=Path("runs/demo"),
    show_default=True,
    help="The folder of the run.",
)
@reporting
def demo(output: Output, out: Path) -> None:
    """Run the whole loop on built-in data, offline.

    It trains a supernet, profiles this machine, searches, compiles the best child, verifies and
    measures it. A run that was stopped goes on when the same command is given again.
    """
    from bignas.cli.inputs import require_folder_place
    from bignas.search.demo import run_demo

    require_folder_place(out)
    with Bars() as bars:
        result = run_demo(out, lambda part, progress: bars(STEPS[part](progress)))
    document = {
        **result.search.to_dict(),
        "kernels": result.kernels,
        "subnets": result.subnets,
        "run": str(out),
    }
    output.show(document, *result_parts(document, out))
