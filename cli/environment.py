"""What libraries read from the environment when torch is imported, unless the user has set it.

- How OpenMP threads wait for the next piece of work (OMP_WAIT_POLICY). Threads that spin save the
  time to wake them, which is long on virtual machines, and make whatever shares their cores several
  times slower, themselves included.
- For how many shapes oneDNN keeps its generated code (ONEDNN_PRIMITIVE_CACHE_CAPACITY). Children of
  a supernet have more of them than its 1,024, and each has to be generated anew otherwise.
"""

import os
from typing import Final

import psutil

__all__ = ["prepare_environment"]

PRIMITIVES: Final = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
PRIMITIVES_KEPT: Final = 20_000
WAITING: Final = "OMP_WAIT_POLICY"
SPINNING, SLEEPING = "ACTIVE", "PASSIVE"
LOOK_SECONDS: Final = 0.2
BUSY_SHARE: Final = 0.1  # of the cores that others may use while threads spin


def prepare_environment(lasting: bool) -> None:
    """Let threads spin in a command that computes for long on an idle machine, sleep otherwise."""
    os.environ.setdefault(PRIMITIVES, str(PRIMITIVES_KEPT))
    if WAITING not in os.environ:
        os.environ[WAITING] = SPINNING if lasting and _is_idle() else SLEEPING


def _is_idle() -> bool:
    """Whether nobody uses the cores now; low priorities do not count, as they give way."""
    shares = psutil.cpu_times_percent(LOOK_SECONDS)
    return bool(shares.user + shares.system < 100.0 * BUSY_SHARE)
