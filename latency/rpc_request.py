"""What is asked of the program that talks to a server of TVM's RPC, and how it answers."""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

__all__ = ["DESCRIBER", "LAUNCHER", "SIGNALLED", "Request", "Sign"]

LAUNCHER: Final = "launcher.so"  # what starts programs on a server
DESCRIBER: Final = "machine.sh"
SIGNALLED: Final = 256  # what launcher.c adds to a signal that ended a program


class Sign(StrEnum):
    """How the client's lines begin that are no output of the program on the server."""

    ALIVE = "@alive"  # something is under way
    MACHINE = "@machine"  # what machine.sh said (JSON text), before the program and after it
    ENDED = "@ended"  # exit status, or SIGNALLED + signal; files have been downloaded before
    ERRORS = "@errors"  # what the program wrote as errors (JSON text), when it failed
    HUNG = "@hung"  # the program wrote nothing for too long and was ended
    LOST = "@lost"  # the server has gone, and why; another one may do
    REFUSED = "@refused"  # nothing can be done with this tracker, key or server, and why


@dataclass(frozen=True, slots=True)
class Request:
    """What to do on a server: `uploads` by their name there, then `command`, then `downloads`.

    Without a command the machine is only described. With `threads`, the program reads first on
    which cores to run. It is ended after `session_seconds` in all, or when it writes nothing for
    `stall_seconds`.
    """

    host: str
    port: int
    key: str
    uploads: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    downloads: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    session_seconds: int = 3600
    stall_seconds: float = 60.0

    def to_line(self) -> str:
        """Return the request as the program reads it."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Return the request that `to_line` was called on."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "command": tuple(values["command"])})
