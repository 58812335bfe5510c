"""What benchmarks share: errors in one line, JSON documents, and going on where one was stopped."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bignas.device_db.errors import BignasError, InputError
from bignas.device_db.files import write_atomically

__all__ = ["conclude", "names", "planned", "progress", "remembered", "run"]


def run(measure: Callable[[], dict[str, Any]], as_json: bool, results: Path | None) -> int:
    """Print what `measure` returns, or one line of error; return the exit code.

    With `as_json` standard output is exactly one JSON document. `results` is a file with a list of
    documents; this one takes the place of that with the same `arguments`, or is added.
    """
    try:
        document = measure()
        if results is not None:
            kept = [one for one in _read(results) if one["arguments"] != document["arguments"]]
            content = json.dumps([*kept, document], indent=1)
            write_atomically(results, f"{content}\n".encode())
    except BignasError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = json.dumps(document, indent=1)
    print(text if as_json else text.replace('"', ""))
    return 0


def conclude(
    measure: Callable[[], dict[str, Any]],
    path: Path,
    brief: Callable[[dict[str, Any]], dict[str, Any]],
) -> int:
    """Write what `measure` returns to a file and print it in brief, or one line of error.

    Returns the exit code.
    """

    def measure_and_write() -> dict[str, Any]:
        document = measure()
        write_atomically(path, f"{json.dumps(document, indent=1)}\n".encode())
        return brief(document)

    return run(measure_and_write, as_json=False, results=None)


def remembered(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the document at `path`, or make it and write it there.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        write_atomically(path, f"{json.dumps(make(), indent=1)}\n".encode())
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged; choose another --out folder") from error
    return document


def planned(
    path: Path, asked: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the plan of a benchmark that was interrupted, or make that of a new one.

    Raises:
        InputError: the folder holds a benchmark that was asked for something else.
    """
    found = remembered(path, lambda: {"asked": asked, "plan": make()})
    if found.get("asked") != json.loads(json.dumps(asked)):
        raise InputError(f"{path.parent} holds another benchmark; choose another --out folder")
    plan: dict[str, Any] = found["plan"]
    return plan


def _read(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    try:
        documents: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{results} is not a list of results; move it away") from error
    return documents


def progress(text: str) -> None:
    """Show how far it is, beside the document."""
    print(text, file=sys.stderr, flush=True)


def names(text: str) -> list[str]:
    """Split a list with commas, an argument type."""
    return [name.strip() for name in text.split(",") if name.strip()]
