"""What the benchmarks on recorded tables share: errors in one line, JSON on standard output."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bignas.device_db.errors import BignasError, InputError
from bignas.device_db.files import write_atomically

__all__ = ["names", "progress", "run"]


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
