"""The manifest of a bundle: what is in it, what it was made of, what was promised and measured.

The file is canonical JSON that carries its own hash, so that any changed byte of it is found.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from bignas.compile.fallback import FALLBACK
from bignas.device_db.errors import BundleError

__all__ = ["FORMAT_VERSION", "FileEntry", "KernelEntry", "Latency", "Manifest", "ScheduleSource"]

FORMAT_VERSION = 3
# History: 1 first version; 2 native runner among the files, source of each kernel's schedule;
# 3 bytes of the weights that are transformed before the first run.


class ScheduleSource(StrEnum):
    """Where a kernel's schedule comes from."""

    TUNED = "tuned"  # the fastest of those measured on the device
    FALLBACK = "fallback"  # TVM's own loop nest: there is no template for the operator
    UNTUNED = "untuned"  # the model's best guess: the device could not be measured


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Hash and size of one file of the bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One kernel in the order of calls; its table latency in microseconds where it was measured.

    A kernel that goes through TVM's own scheduling has `fallback` for its schedule, and begins with
    `fallback-OPERATOR-`.
    """

    workload: str
    schedule: str
    latency_us: float | None
    source: ScheduleSource


@dataclass(frozen=True, slots=True)
class Latency:
    """A latency with its kind: predicted ones have an interval, measured ones quantiles."""

    kind: str
    device: str
    latency_ms: float
    interval_ms: tuple[float, float] | None = None
    min_ms: float | None = None
    p90_ms: float | None = None
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a bundle says of itself. Sizes in bytes, latencies in milliseconds.

    Weights, workspace and what is prepared of weights before the first run are in memory together.
    """

    name: str
    bignas_version: str
    compiler: str
    code_hash: str
    target: dict[str, Any]
    device: str
    threads: int
    space: str | None
    space_digest: str | None
    architecture: dict[str, Any] | None
    macs: int
    weights_bytes: int
    workspace_bytes: int
    prepared_bytes: int
    input: dict[str, Any]
    output: dict[str, Any]
    kernels: tuple[KernelEntry, ...]
    predicted: Latency | None
    measured: Latency | None
    tolerance: float
    files: dict[str, FileEntry]

    @property
    def memory_bytes(self) -> int:
        """Bytes that the network needs, the program's code apart."""
        return self.weights_bytes + self.workspace_bytes + self.prepared_bytes

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The operators that go through TVM's own scheduling, each once."""
        keys = [entry.workload for entry in self.kernels if entry.schedule == FALLBACK]
        return tuple(dict.fromkeys(key.split("-")[1] for key in keys))

    def to_bytes(self) -> bytes:
        """Return the manifest file: canonical JSON with the format version and its own hash."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        content["manifest_sha256"] = _hash(content)
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the manifest of a file's bytes.

        Raises:
            BundleError: not a manifest, of a newer version, or changed after it was written.
        """
        try:
            content = json.loads(data)
            version = content.pop("format_version")
            claimed = content.pop("manifest_sha256")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BundleError("manifest.json is damaged or no manifest of a bundle") from error
        if version != FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format version {version}, this bignas reads {FORMAT_VERSION};"
                " install the version that wrote it"
            )
        if claimed != _hash({"format_version": version, **content}):
            raise BundleError("manifest.json was changed after it was written: its hash differs")
        try:
            content["kernels"] = tuple(_kernel(entry) for entry in content["kernels"])
            content["files"] = {
                name: FileEntry(**entry) for name, entry in content["files"].items()
            }
            for key in ("predicted", "measured"):
                content[key] = _latency(content[key])
            manifest = cls(**content)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise BundleError(f"manifest.json is damaged: {error}") from error
        if manifest.to_bytes() != data:
            raise BundleError("manifest.json was changed after it was written: its text differs")
        return manifest


def _kernel(entry: dict[str, Any]) -> KernelEntry:
    return KernelEntry(**{**entry, "source": ScheduleSource(entry["source"])})


def _latency(entry: dict[str, Any] | None) -> Latency | None:
    if entry is None:
        return None
    interval = entry.get("interval_ms")
    return Latency(**{**entry, "interval_ms": None if interval is None else tuple(interval)})


def _hash(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
