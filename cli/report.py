"""bignas report: one HTML file that shows a run."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from pathlib import Path

import click

from bignas.cli.options import PATH, examples
from bignas.cli.output import Output, reporting

__all__ = ["report"]


@click.command(
    epilog=examples("bignas report runs/demo", "bignas report runs/a --out a.html --json")
)
@click.argument("run", metavar="RUN", type=PATH)
@click.option(
    "--out", metavar="FILE", type=PATH, help="Where to write it; by default RUN/report.html."
)
@reporting
def report(output: Output, run: Path, out: Path | None) -> None:
    """Write the report of a search: one HTML file that works offline.

    It shows the Pareto front, predicted against measured latencies, the chosen architecture and
    where its time goes, the progress of the search, other devices and where all figures come from.
    """
    from bignas.cli.inputs import require_file_place
    from bignas.search.report import REPORT, write_report

    require_file_place(out or run / REPORT)
    path = write_report(run, out)
    output.show({"report": str(path), "bytes": path.stat().st_size}, f"report  {path}")
