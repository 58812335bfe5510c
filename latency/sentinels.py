"""What a machine can do when it is left alone, remembered from process to process."""

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from bignas.device_db.files import write_atomically
from bignas.latency.jobs import Settings

__all__ = ["Sentinels", "references_of"]

FORGET_SECONDS = 3600.0  # after which a reference that is not reached gives way to a slower one
MUCH_FASTER = 0.9  # of the reference: no rounding, but what the measuring program found far


@dataclass(frozen=True, slots=True)
class Sentinels:
    """What the sentinels read on this machine; 0: not known.

    The core's is a reference that everything is measured at, the memory's the best that was seen.
    `reached_at` is when a process last came near them, in seconds since the epoch.
    """

    core_ns: float = 0.0
    memory_ns: float = 0.0
    reached_at: float = 0.0

    @classmethod
    def recall(cls, path: Path) -> "Sentinels":
        """Return what earlier processes found; nothing when the file is missing or damaged."""
        try:
            content = json.loads(path.read_bytes())
            return cls(*(float(content[one.name]) for one in fields(cls)))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def remember(self, path: Path, found: "Sentinels", reached: bool) -> None:
        """Keep reference and best figures, unless they are not `reached` for `FORGET_SECONDS`.

        A neighbour makes a core slow for minutes: what is measured meanwhile belongs to the same
        reference. A core that is much faster gives a new one at once.
        """
        now = time.time()
        kept = replace(found, reached_at=now)
        if self != Sentinels() and (reached or now - self.reached_at < FORGET_SECONDS):
            kept = Sentinels(
                found.core_ns if found.core_ns < MUCH_FASTER * self.core_ns else self.core_ns,
                min(self.memory_ns or found.memory_ns, found.memory_ns or self.memory_ns),
                now if reached else self.reached_at,
            )
        write_atomically(path, json.dumps(asdict(kept)).encode())


def references_of(program: Path, settings: Settings) -> Path:
    """Return the file that remembers what the sentinels can do beside jobs of such settings."""
    anchor = "chain" if settings.anchor is None else settings.anchor.library.stem
    return program.with_name(f"{program.name}.{anchor}.{settings.threads}.json")
