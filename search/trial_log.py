"""Trials of a search on disk, so that an interrupted search goes on where it stopped.

`search.json` holds what the search was asked for; `trials.jsonl` one JSON list of trials a batch,
so that a strategy is told the same batches again and continues exactly as it would have.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bignas.device_db.errors import ArchitectureError, InputError, OutputError
from bignas.device_db.files import write_atomically
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture

__all__ = ["TrialLog", "read_trials"]

SETTINGS = "search.json"
TRIALS = "trials.jsonl"

FORMAT_VERSION = 2  # 2: trials have a load instead of being feasible or not


class TrialLog:
    """The record of one search in a run folder.

    Raises:
        InputError: the folder holds another search, or a damaged one.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, question: Mapping[str, Any]) -> None:
        self._question = {"format_version": FORMAT_VERSION, **question}
        self._path = folder / TRIALS
        settings = folder / SETTINGS
        if settings.exists():
            self._require_same(settings)
        else:
            text = json.dumps(self._question, indent=1, sort_keys=True) + "\n"
            write_atomically(settings, text.encode())

    def _require_same(self, settings: Path) -> None:
        try:
            found = json.loads(settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{settings} is damaged; choose another --out folder") from error
        version = found.get("format_version") if isinstance(found, dict) else None
        if version is not None and version != FORMAT_VERSION:
            raise InputError(
                f"{settings.parent} is a run of format version {version}, this bignas reads"
                f" {FORMAT_VERSION}; choose another --out folder"
            )
        if not isinstance(found, dict) or found != json.loads(json.dumps(self._question)):
            keys = [key for key, value in self._question.items() if _get(found, key) != value]
            raise InputError(
                f"{settings.parent} holds another search ({', '.join(keys) or 'unknown'} differ);"
                " choose another --out folder"
            )

    def read(self) -> list[list[Trial]]:
        """Return the batches told so far; a half-written last line is removed."""
        if self._path.exists():
            text = self._path.read_bytes()
            complete = text[: text.rfind(b"\n") + 1]
            if complete != text:
                write_atomically(self._path, complete)
        return read_trials(self._path.parent)

    def append(self, batch: Sequence[Trial]) -> None:
        """Write one batch and make sure that it is on the disk."""
        line = json.dumps([_plain(trial) for trial in batch], separators=(",", ":")) + "\n"
        try:
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error


def read_trials(folder: Path) -> list[list[Trial]]:
    """Return the batches of trials in a run folder; a half-written last line is left out.

    Raises InputError when they are damaged.
    """
    path = folder / TRIALS
    if not path.exists():
        return []
    batches: list[list[Trial]] = []
    text = path.read_bytes()
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        try:
            batches.append([_trial(entry) for entry in json.loads(line)])
        except (ValueError, KeyError, TypeError, ArchitectureError) as error:
            raise InputError(f"{path} is damaged; choose another --out folder") from error
    return batches


def _get(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else None


def _plain(trial: Trial) -> dict[str, Any]:
    return {
        "arch": trial.architecture.to_dict(),
        "latency_ms": trial.latency_ms,
        "load": trial.load,
        "top1": trial.top1,
    }


def _trial(entry: dict[str, Any]) -> Trial:
    architecture = Architecture.from_dict(entry["arch"])
    return Trial(architecture, entry["latency_ms"], entry["load"], entry["top1"])
