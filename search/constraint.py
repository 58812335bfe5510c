"""The promise a search has to keep: a latency budget."""

import math
import re
from dataclasses import dataclass

from bignas.device_db.errors import BudgetError

__all__ = ["LatencyBudget"]

MILLISECONDS_PER_UNIT = {"us": 1e-3, "ms": 1.0, "s": 1e3}

_NUMBER_AND_UNIT = re.compile(
    r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([A-Za-z]*)\s*"
)


@dataclass(frozen=True)
class LatencyBudget:
    """The longest latency a network may have on the device, in milliseconds.

    Raises BudgetError when it is not a positive, finite number.
    """

    budget_ms: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.budget_ms) and self.budget_ms > 0):
            raise BudgetError(
                f"a latency budget must be a positive number, not {self.budget_ms:g} ms; "
                f"write for example 1.5ms"
            )

    @classmethod
    def parse(cls, text: str) -> "LatencyBudget":
        """Read "1.5ms", "800us" or "0.01s". Raises BudgetError for anything else."""
        advice = "write a positive number with a unit (us, ms or s), for example 1.5ms"
        match = _NUMBER_AND_UNIT.fullmatch(text)
        if match is None:
            raise BudgetError(f"cannot read the budget {text!r}; {advice}")
        number, unit = match.groups()
        if not unit:
            raise BudgetError(f"the budget {text!r} has no unit; {advice}")
        if unit not in MILLISECONDS_PER_UNIT:
            raise BudgetError(f"the budget {text!r} has the unknown unit {unit!r}; {advice}")
        milliseconds = float(number) * MILLISECONDS_PER_UNIT[unit]
        if not (math.isfinite(milliseconds) and milliseconds > 0):
            raise BudgetError(f"the budget {text!r} is not positive and finite; {advice}")
        return cls(milliseconds)

    def allows(self, latency_ms: float) -> bool:
        """Whether a network of this latency keeps the budget (NaN does not)."""
        return latency_ms <= self.budget_ms

    def __str__(self) -> str:
        return f"{self.budget_ms:g}ms"
