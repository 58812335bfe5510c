"""What a search knows about one architecture it has looked at."""

import math
from dataclasses import dataclass

from bignas.supernet.space import Architecture

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """One evaluated (or, when too slow, rejected) architecture; strategies are told these.

    Raises ValueError for a latency that is not positive and finite or an accuracy outside 0..1.
    """

    architecture: Architecture
    latency_ms: float
    feasible: bool  # keeps the latency budget
    top1: float | None = None  # fraction from 0 to 1; None when it was not evaluated

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise ValueError(f"latency_ms must be positive and finite, not {self.latency_ms}")
        if self.top1 is not None and not 0 <= self.top1 <= 1:
            raise ValueError(f"top1 must be a fraction from 0 to 1, not {self.top1}")

    @property
    def score(self) -> float:
        """The one number to maximise, after the feasibility rules of Deb (2000).

        "An efficient constraint handling method for genetic algorithms", CMAME 186: any feasible
        trial beats any infeasible one; feasible ones compare by accuracy (0 when not evaluated),
        infeasible ones by latency, so that a search finds its way to a tight budget.
        """
        if not self.feasible:
            return -self.latency_ms
        return 0.0 if self.top1 is None else self.top1
