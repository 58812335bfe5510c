"""What a machine can do when it is left alone, remembered from process to process.

The stream through the shared cache takes as long as what it reads has been left alone, and as other
data have taken its place: from one reading to the next, kernels take much less time than networks,
and small networks touch much less than big ones (docs/decisions.md, "Good readings of the memory
sentinel"). So good readings are remembered for each company: kernels, or networks of about the same
size altogether. What the core can do is the same beside all.

What the first processes find of the core may be a neighbour's doing: one that is faster gives the
reference at once. Once several processes came near it, profiles and budgets are at that reference,
and a core in a faster state for hours is measured at it, too: networks follow the anchor
(docs/decisions.md, "The reference of the core stays").
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bignas.device_db.files import cache_folder, write_atomically
from bignas.latency.evidence import PROTOCOL
from bignas.latency.jobs import Job, NetworkJob, Settings

__all__ = ["BESIDE_KERNELS", "Sentinels", "company_of", "references_of"]

FORGET_SECONDS = 3600.0  # after which a reference that is not reached gives way to a slower one
MUCH_FASTER = 0.9  # of the reference: no rounding, but what the measuring program found far
FASTEST_CORE = 1.2  # times as fast as its reference, and measured at it still
FASTEST_ESTABLISHED = 1.35  # where `ESTABLISHED` processes came near the reference
ESTABLISHED = 9
LATEST = 9  # processes whose good readings of the memory count: the best ever may be a rare luck


BESIDE_KERNELS = "kernels"


def company_of(jobs: Sequence[Job]) -> str:
    """Return what runs between two readings of the sentinels when these jobs are measured together.

    `BESIDE_KERNELS`, or networks with the power of two that their libraries have fewer bytes than.
    """
    networks = [one.library for one in jobs if isinstance(one, NetworkJob)]
    if not networks:
        return BESIDE_KERNELS
    size = sum(path.stat().st_size for path in networks if path.is_file())
    return f"networks below 2^{size.bit_length()} bytes"


@dataclass(frozen=True, slots=True)
class Sentinels:
    """What the sentinels read on this machine in one company; 0: not known.

    The core's is a reference that everything is measured at, the memory's the median of what the
    latest processes found. `reached_at` is when one last came near the core's, in seconds since the
    epoch, `processes` how many did.
    """

    core_ns: float = 0.0
    memory_ns: float = 0.0
    reached_at: float = 0.0
    processes: int = 0

    @property
    def fastest_core(self) -> float:
        """How many times as fast as its reference a core may be."""
        return FASTEST_ESTABLISHED if self.processes >= ESTABLISHED else FASTEST_CORE

    @classmethod
    def recall(cls, path: Path, company: str) -> "Sentinels":
        """Return what earlier processes found; nothing when the file is missing or damaged."""
        core_ns, readings_ns, reached_at, processes = _read(path)
        return cls(core_ns, median(readings_ns.get(company, [0.0])), reached_at, processes)

    def remember(self, path: Path, company: str, found: "Sentinels", reached: bool) -> None:
        """Add what was found; the core's reference stays unless not `reached` for `FORGET_SECONDS`.

        A neighbour makes a core slow for minutes: what is measured meanwhile belongs to the same
        reference. A core that is faster than `fastest_core` gives a new one at once.
        """
        now = time.time()
        core_ns, reached_at, processes = found.core_ns, now, int(reached)
        faster = found.core_ns < MUCH_FASTER * self.core_ns
        if self.core_ns and not faster and (reached or now - self.reached_at < FORGET_SECONDS):
            core_ns, processes = self.core_ns, self.processes + processes
            reached_at = now if reached else self.reached_at
        _, readings_ns, *_ = _read(path)
        if found.memory_ns:
            latest = [*readings_ns.get(company, []), found.memory_ns]
            readings_ns[company] = latest[-LATEST:]
        content = {
            "core_ns": core_ns,
            "memory_ns": readings_ns,
            "reached_at": reached_at,
            "processes": processes,
        }
        write_atomically(path, json.dumps(content).encode())


def _read(path: Path) -> tuple[float, dict[str, list[float]], float, int]:
    """The core's reference, the memory's readings, when the core was last near it, how often."""
    try:
        content = json.loads(path.read_bytes())
        readings_ns = {
            str(company): [float(one) for one in latest]
            for company, latest in content["memory_ns"].items()
            if latest
        }
        core_ns, reached_at = float(content["core_ns"]), float(content["reached_at"])
        return core_ns, readings_ns, reached_at, int(content["processes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0.0, {}, 0.0, 0


def references_of(machine: str, settings: Settings) -> Path:
    """Return the file that remembers what the sentinels can do on a machine beside such jobs.

    What they read depends on the anchor and on the protocol, not on the measuring program's code:
    with a new one, profiles stay at the reference that they were measured at.
    """
    anchor = "chain" if settings.anchor is None else settings.anchor.library.stem
    return cache_folder() / f"sentinels-{PROTOCOL}-{machine}.{anchor}.{settings.threads}.json"
