"""What a machine can do when it is left alone, remembered from process to process.

The stream through the shared cache takes as long as what it reads has been left alone: from one
reading to the next, kernels take much less time than networks. So the best reading is remembered
for each kind of jobs. What the core can do is the same beside all.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bignas.device_db.files import write_atomically
from bignas.latency.jobs import Job, NetworkJob, Settings

__all__ = ["JobKind", "Sentinels", "kind_of", "references_of"]

FORGET_SECONDS = 3600.0  # after which a reference that is not reached gives way to a slower one
MUCH_FASTER = 0.9  # of the reference: no rounding, but what the measuring program found far


class JobKind(StrEnum):
    """What runs between two readings of the sentinels."""

    KERNELS = "kernels"
    NETWORKS = "networks"


def kind_of(jobs: Sequence[Job]) -> JobKind:
    """Return the kind of jobs that are measured together."""
    networks = any(isinstance(one, NetworkJob) for one in jobs)
    return JobKind.NETWORKS if networks else JobKind.KERNELS


@dataclass(frozen=True, slots=True)
class Sentinels:
    """What the sentinels read on this machine beside jobs of one kind; 0: not known.

    The core's is a reference that everything is measured at, the memory's the best that was seen.
    `reached_at` is when a process last came near them, in seconds since the epoch.
    """

    core_ns: float = 0.0
    memory_ns: float = 0.0
    reached_at: float = 0.0

    @classmethod
    def recall(cls, path: Path, kind: JobKind) -> "Sentinels":
        """Return what earlier processes found; nothing when the file is missing or damaged."""
        try:
            content = json.loads(path.read_bytes())
            memory_ns = float(content["memory_ns"].get(kind, 0.0))
            return cls(float(content["core_ns"]), memory_ns, float(content["reached_at"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def remember(self, path: Path, kind: JobKind, found: "Sentinels", reached: bool) -> None:
        """Keep reference and best figures, unless they are not `reached` for `FORGET_SECONDS`.

        A neighbour makes a core slow for minutes: what is measured meanwhile belongs to the same
        reference. A core that is much faster gives a new one at once.
        """
        now = time.time()
        core_ns, memory_ns, reached_at = found.core_ns, found.memory_ns, now
        if self != Sentinels() and (reached or now - self.reached_at < FORGET_SECONDS):
            core_ns = found.core_ns if found.core_ns < MUCH_FASTER * self.core_ns else self.core_ns
            memory_ns = min(self.memory_ns or found.memory_ns, found.memory_ns or self.memory_ns)
            reached_at = now if reached else self.reached_at
        best_ns = {one: Sentinels.recall(path, one).memory_ns for one in JobKind}
        content = {
            "core_ns": core_ns,
            "memory_ns": {**best_ns, kind: memory_ns},
            "reached_at": reached_at,
        }
        write_atomically(path, json.dumps(content).encode())


def references_of(program: Path, settings: Settings) -> Path:
    """Return the file that remembers what the sentinels can do beside jobs of such settings."""
    anchor = "chain" if settings.anchor is None else settings.anchor.library.stem
    return program.with_name(f"{program.name}.{anchor}.{settings.threads}.json")
