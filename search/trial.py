"""What a search knows about one architecture it has looked at."""

import math
from dataclasses import dataclass

from bignas.supernet.architecture import Architecture

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """One evaluated (or, when it breaks a limit, rejected) architecture; strategies are told these.

    Raises ValueError for a latency or load that is not positive and finite or an accuracy outside
    0..1.
    """

    architecture: Architecture
    latency_ms: float
    load: float  # what it uses of the limit that is tightest for it; up to 1 it keeps all limits
    top1: float | None = None  # fraction from 0 to 1; None when it was not evaluated

    def __post_init__(self) -> None:
        for name in ("latency_ms", "load"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, not {value}")
        if self.top1 is not None and not 0 <= self.top1 <= 1:
            raise ValueError(f"top1 must be a fraction from 0 to 1, not {self.top1}")

    @property
    def feasible(self) -> bool:
        """Whether it keeps all limits."""
        return self.load <= 1

    @property
    def score(self) -> float:
        """The one number to maximise, after the feasibility rules of Deb (2000).

        "An efficient constraint handling method for genetic algorithms", CMAME 186: any feasible
        trial beats any infeasible one; feasible ones compare by accuracy (0 when not evaluated),
        infeasible ones by load, so that a search finds its way to a tight limit.
        """
        if not self.feasible:
            return -self.load
        return 0.0 if self.top1 is None else self.top1
