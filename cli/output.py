"""What a command prints: tables for people, or exactly one JSON document for scripts.

In JSON mode everything that would go to stdout while the command works (a library's stray print,
too) goes to stderr instead; only the document reaches stdout.
"""

import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, TextIO

import click
from rich.console import Console, RenderableType
from rich.table import Table

if TYPE_CHECKING:  # numpy takes its time; help shall not wait for it
    from bignas.supernet.architecture import Architecture

__all__ = [
    "JSON_FLAG",
    "Output",
    "architecture_text",
    "chance",
    "facts",
    "interval_text",
    "milliseconds",
    "percent",
    "reporting",
    "table",
    "write_document",
]

JSON_FLAG = "--json"
SURE = 0.999
_NARROWEST = 120  # columns, where the output is no terminal


class Output:
    """Where a command shows its result."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._stream = sys.stdout

    def show(self, document: object, *parts: RenderableType) -> None:
        """Print the document in JSON mode, else the parts one below the other."""
        if self.as_json:
            write_document(document, self._stream)
            return
        console = _console(self._stream)
        for part in parts:
            console.print(part)

    def note(self, text: str) -> None:
        """Tell the user something on stderr."""
        click.echo(f"note: {text}", err=True)

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Keep stdout clean for the document while the command works."""
        if not self.as_json:
            yield
            return
        with contextlib.redirect_stdout(sys.stderr):
            yield


def reporting(function: Callable[Concatenate[Output, ...], None]) -> Callable[..., None]:
    """Give a command the option --json, and its function an `Output` as the first argument."""

    @functools.wraps(function)
    def command(*args: Any, as_json: bool, **options: Any) -> None:
        output = Output(as_json)
        with output.guarding():
            function(output, *args, **options)

    option = click.option(
        JSON_FLAG, "as_json", is_flag=True, help="Print one JSON document on stdout."
    )
    return option(command)


def write_document(document: object, stream: TextIO) -> None:
    """Write a value as JSON; numbers that JSON does not know become null."""
    stream.write(json.dumps(_plain(document), indent=2, allow_nan=False) + "\n")
    stream.flush()


def _plain(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case Path():
            return str(value)
        case _:
            return value


def _console(stream: TextIO) -> Console:
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, _NARROWEST)
    return console


def facts(rows: Mapping[str, object]) -> Table:
    """Return a table of names and values."""
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, str(value))
    return grid


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table with a header; numbers stand on the right."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    entries = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numeric = bool(entries) and all(_numeric(row[index]) for row in entries)
        result.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in entries:
        result.add_row(*(str(cell) for cell in row))
    return result


def _numeric(cell: object) -> bool:
    return str(cell)[:1].isdigit()


def milliseconds(value: float | None) -> str:
    """Return a latency for people."""
    return "-" if value is None else f"{value:.4g} ms"


def interval_text(interval_ms: Sequence[float] | None) -> str:
    """Return an interval [low, high] of latencies for people."""
    return "-" if interval_ms is None else f"{interval_ms[0]:.4g} to {interval_ms[1]:.4g} ms"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share from 0 to 1 for people."""
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}%"


def chance(probability: float) -> str:
    """Return a probability for people; one that is only nearly certain is not shown as 100%."""
    return f"> {percent(SURE)}" if probability > SURE else percent(probability)


def architecture_text(architecture: "Architecture") -> str:
    """Return an architecture in short: resolution, stem, stages as channels x depth, head."""
    stages = " ".join(
        f"{stage.channels}x{stage.depth}/k{stage.kernel}e{stage.expand}"
        for stage in architecture.stages
    )
    return (
        f"r{architecture.resolution} {architecture.stem_channels} [{stages}]"
        f" {architecture.head_channels}"
    )
