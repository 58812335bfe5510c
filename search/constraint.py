"""The limits a search has to keep: latency budgets, and what a network may consist of."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bignas.device_db.errors import BudgetError

__all__ = ["LatencyBudget", "Limits", "device_budgets", "parse_bytes", "parse_count"]

MILLISECONDS_PER_UNIT = {"us": 1e-3, "ms": 1.0, "s": 1e3}
COUNTS: Mapping[str, float] = MappingProxyType({"": 1, "k": 1e3, "M": 1e6, "G": 1e9})
BYTES: Mapping[str, float] = MappingProxyType(
    {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
)

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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a network may need at most, beside time; None: any amount.

    Raises BudgetError for a limit that is not positive.
    """

    macs: int | None = None  # multiply-accumulates of one image
    params: int | None = None
    memory_bytes: int | None = None  # weights and the largest workspace together
    bundle_bytes: int | None = None  # all files of the bundle

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if value <= 0:
                raise BudgetError(f"the limit of {name} must be positive, not {value}")

    def given(self) -> dict[str, int]:
        """The limits that are set, by name."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}


def device_budgets(devices: Sequence[str], budget: str | None) -> dict[str, LatencyBudget]:
    """Read devices given as NAME or NAME:TIME; `budget` is that of devices without a time.

    Raises BudgetError for a device that is named twice or has no budget, and for a budget that is
    nobody's.
    """
    default = None if budget is None else LatencyBudget.parse(budget)
    budgets: dict[str, LatencyBudget] = {}
    used = False
    for text in devices:
        name, colon, time = text.partition(":")
        if name in budgets:
            raise BudgetError(f"device {name!r} is given twice; give it one budget")
        if colon:
            budgets[name] = LatencyBudget.parse(time)
            continue
        if default is None:
            raise BudgetError(
                f"device {name!r} has no budget; write --device {name}:1.5ms or --budget 1.5ms"
            )
        budgets[name], used = default, True
    if default is not None and not used:
        raise BudgetError(
            f"the budget {budget} contradicts the devices, which all have their own; leave it out"
        )
    return budgets


def parse_count(text: str) -> int:
    """Read "300k", "12.5M" or "1e6". Raises BudgetError for anything else."""
    return _parse(text, COUNTS, "a positive number, for example 300k or 12.5M")


def parse_bytes(text: str) -> int:
    """Read "512kB", "1.5MB" or "2MiB". Raises BudgetError for anything else."""
    return _parse(text, BYTES, "a positive number with a unit (B, kB, MB, GB or KiB, MiB, GiB)")


def _parse(text: str, units: Mapping[str, float], advice: str) -> int:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in units:
        raise BudgetError(f"cannot read the limit {text!r}; write {advice}")
    value = float(match[1]) * units[match[2]]
    if not (math.isfinite(value) and value >= 1):
        raise BudgetError(f"the limit {text!r} is not positive and finite; write {advice}")
    return int(value)
