"""How OpenMP threads wait for the next piece of work, unless the user says it (OMP_WAIT_POLICY).

OpenMP reads the variable when torch is imported. Threads that spin save the time to wake them,
which is long on virtual machines, and make whatever shares their cores several times slower,
themselves included.
"""

import os
from typing import Final

import psutil

__all__ = ["set_waiting"]

VARIABLE: Final = "OMP_WAIT_POLICY"
SPINNING, SLEEPING = "ACTIVE", "PASSIVE"
LOOK_SECONDS: Final = 0.2
BUSY_SHARE: Final = 0.1  # of the cores that others may use while threads spin


def set_waiting(lasting: bool) -> None:
    """Let threads spin in a command that computes for long on an idle machine, sleep otherwise."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = SPINNING if lasting and _is_idle() else SLEEPING


def _is_idle() -> bool:
    """Whether nobody uses the cores now; low priorities do not count, as they give way."""
    shares = psutil.cpu_times_percent(LOOK_SECONDS)
    return bool(shares.user + shares.system < 100.0 * BUSY_SHARE)
