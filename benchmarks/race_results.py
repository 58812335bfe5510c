"""What a race found: one entry for each network, number of threads and target, and their summary.

Pieces of a race are merged into one file, which is a JSON document of `entries` (with every sample)
and `summary` (computed from the entries when the file is written). An entry counts as done while
the kernel generators are those that it was measured with.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from engines import OURS

from bignas.device_db.errors import InputError
from bignas.device_db.files import write_atomically

__all__ = [
    "Entry",
    "Key",
    "fastest_peer",
    "geometric_mean",
    "is_done",
    "key_of",
    "merge",
    "ratio",
    "read_entries",
    "summarise",
    "write_results",
]

APART = "resnet"  # group that stands apart: peers use Winograd there
SMALL = "cifar"

Entry = dict[str, Any]


class Key(NamedTuple):
    """What an entry is about; there is one entry for each."""

    target: str
    threads: int
    model: str


def key_of(entry: Mapping[str, Any]) -> Key:
    """Return what an entry is about."""
    return Key(entry["target"], entry["threads"], entry["model"])


def merge(old: Iterable[Entry], new: Iterable[Entry], models: Sequence[str]) -> list[Entry]:
    """Return the entries of both in the order of targets, threads and `models`.

    A new entry takes the place of the old one that is about the same.
    """
    merged = {key_of(entry): entry for entry in (*old, *new)}
    targets = list(dict.fromkeys(key.target for key in merged))

    def place(key: Key) -> tuple[int, int, int]:
        known = models.index(key.model) if key.model in models else len(models)
        return targets.index(key.target), key.threads, known

    return [merged[key] for key in sorted(merged, key=place)]


def is_done(entry: Mapping[str, Any] | None, engines: Iterable[str], code_hash: str) -> bool:
    """Tell whether an entry has all these engines and was measured with this code."""
    return (
        entry is not None
        and entry["code_hash"] == code_hash
        and set(engines) <= set(entry["median_us"])
    )


def fastest_peer(entry: Mapping[str, Any]) -> str | None:
    """Return the name of the fastest engine but ours, None when ours ran alone."""
    peers = {name: us for name, us in entry["median_us"].items() if name != OURS}
    return min(peers, key=lambda name: peers[name]) if peers else None


def ratio(entry: Mapping[str, Any], peer: str | None = None) -> float | None:
    """Return our latency over that of a peer, of the fastest one unless named; None without it."""
    medians = entry["median_us"]
    name = peer or fastest_peer(entry)
    return medians[OURS] / medians[name] if name in medians else None


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean of the values that are there, None when there are none."""
    present = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(present)))) if present else None


def summarise(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return one summary for each target and number of threads, in their order."""
    courses = dict.fromkeys((entry["target"], entry["threads"]) for entry in entries)
    return [
        _course([one for one in entries if (one["target"], one["threads"]) == course])
        for course in courses
    ]


def _course(entries: Sequence[Entry]) -> dict[str, Any]:
    counted = [entry for entry in entries if entry["group"] != APART]
    small = [entry for entry in entries if entry["group"] == SMALL]
    peers = dict.fromkeys(name for one in counted for name in one["median_us"] if name != OURS)
    rows = [_row(entry) for entry in entries]
    raced = [row for row in rows if row["ratio"] is not None]
    return {
        "target": entries[0]["target"],
        "threads": entries[0]["threads"],
        "geometric_mean_ratio": geometric_mean(ratio(entry) for entry in counted),
        "geometric_mean_ratio_cifar": geometric_mean(ratio(entry) for entry in small),
        "geometric_mean_ratio_by_peer": {
            name: geometric_mean(ratio(entry, name) for entry in counted) for name in peers
        },
        "worst": max(raced, key=lambda row: float(row["ratio"]))["model"] if raced else None,
        "models": rows,
    }


def _row(entry: Entry) -> dict[str, Any]:
    us, peer = entry["median_us"][OURS], fastest_peer(entry)
    return {
        "model": entry["model"],
        "mmacs": entry["macs"] / 1e6,
        "us": us,
        "fastest_peer": peer,
        "ratio": ratio(entry),
        "peak_share": entry["needed_macs"] / us / 1e3 / entry["peak_gmacs"],
        "kernel_sum_over_network": _over_network(entry, "kernel_sum_us"),
        "alone_sum_over_network": _over_network(entry, "alone_sum_us"),
    }


def _over_network(entry: Mapping[str, Any], total: str) -> float | None:
    """Return a sum of kernels over their network; None in results that are older than the sum."""
    return entry[total] / entry["network_us"]["p50"] if total in entry else None


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a results file, none when it does not exist.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        entries: list[Entry] = json.loads(path.read_bytes())["entries"]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no results of a race; name another file") from error
    return entries


def write_results(path: Path, entries: Sequence[Entry], machine: Mapping[str, Any]) -> None:
    """Write entries and their summary, after what is known of the machine."""
    document = {"kind": "measured", **machine, "summary": summarise(entries), "entries": entries}
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
