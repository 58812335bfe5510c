"""All limits of one search together: budgets on one or several devices, and resources.

An architecture's load is the largest share of a limit that it uses: up to 1 it keeps them all.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bignas.compile.objects import ObjectCache
from bignas.device_db.device import Device
from bignas.device_db.errors import BudgetError, InfeasibleBudgetError
from bignas.latency.predictor import LatencyPredictor
from bignas.search.constraint import LatencyBudget, Limits
from bignas.search.resources import RESOURCES
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["Requirements", "Site"]

Array = NDArray[np.float64]

FASTEST_OF = 256  # random architectures beside the smallest, to know the most frugal


@dataclass(frozen=True, eq=False)
class Site:
    """A device with what is known about it, and the budget there in milliseconds."""

    device: Device
    cache: ObjectCache
    predictor: LatencyPredictor
    budget_ms: float

    @property
    def limit(self) -> str:
        """What messages call the limit that the budget is."""
        return f"latency on {self.device.name}"

    @property
    def budget(self) -> LatencyBudget:
        """The budget, validated."""
        return LatencyBudget(self.budget_ms)


@dataclass(frozen=True, eq=False)
class Requirements:
    """The limits of a search over one space.

    `confidence` is the probability, from the calibrated interval, with which an architecture has to
    keep each budget, and `headroom` the share of each that its predicted latency has to leave.
    Raises BudgetError when a device is named twice or there is none, InputError for a confidence
    outside 0..1.
    """

    space: SearchSpace
    sites: tuple[Site, ...]
    confidence: float
    limits: Limits = field(default_factory=Limits)
    headroom: float = 0.0

    def __post_init__(self) -> None:
        names = [site.device.name for site in self.sites]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise BudgetError(f"device {twice!r} is given twice; give it one budget")
        if not names:
            raise BudgetError("a search needs at least one device")
        for site in self.sites:
            site.predictor.quantile_ms([], self.confidence)  # refuses a confidence outside 0..1

    def loads(self, architectures: Sequence[Architecture]) -> Array:
        """The load of each architecture [n]."""
        return np.asarray(np.max(list(self.shares(architectures).values()), axis=0))

    def shares(self, architectures: Sequence[Architecture]) -> dict[str, Array]:
        """What each architecture uses of each limit, [n] for every name of a limit."""
        shares = {
            site.limit: self._bounds_ms(site, architectures) / site.budget_ms for site in self.sites
        }
        for name, limit in self.limits.given().items():
            used = [RESOURCES[name](self.space, one) for one in architectures]
            shares[name] = np.array(used, dtype=np.float64) / limit
        return shares

    def probabilities(self, architecture: Architecture) -> dict[str, float]:
        """The probability, by device, that the binary of an architecture keeps the budget there."""
        return {
            site.device.name: float(
                site.predictor.probability_within([architecture], site.budget_ms)[0]
            )
            for site in self.sites
        }

    def conditioned(
        self, architectures: Sequence[Architecture], measured_ms: Sequence[Sequence[float]]
    ) -> "Requirements":
        """The same limits, with predictors that know what architectures [n] were measured at.

        `measured_ms` is [n, sites], in the order of the sites.
        """
        sites: list[Site] = []
        for number, site in enumerate(self.sites):
            column = [row[number] for row in measured_ms]
            networks = list(zip(architectures, column, strict=True))
            conditioned = site.predictor.conditioned(networks)
            sites.append(dataclasses.replace(site, predictor=conditioned))
        return dataclasses.replace(self, sites=tuple(sites))

    def leaving(self, headroom: float, seed: int) -> "Requirements":
        """The same limits with so much of the budgets left, unless nothing then keeps them."""
        strict = dataclasses.replace(self, headroom=headroom)
        try:
            strict.require_feasible(seed)
        except InfeasibleBudgetError:
            return self
        return strict

    def require_feasible(self, seed: int) -> None:
        """Raise InfeasibleBudgetError when no architecture keeps all limits.

        It names the limits that are broken by the architecture nearest to keeping them all. That is
        the smallest as a rule; random ones guard against exceptions.
        """
        random = np.random.default_rng(seed)
        some = [self.space.smallest(), *(self.space.sample(random) for _ in range(FASTEST_OF))]
        loads = self.loads(some)
        nearest = int(np.argmin(loads))
        if loads[nearest] <= 1:
            return
        broken = [
            self._needed(name, float(share[0]))
            for name, share in self.shares([some[nearest]]).items()
            if share[0] > 1
        ]
        raise InfeasibleBudgetError(
            f"no architecture of space {self.space.name!r} keeps all limits; the nearest,"
            f" {some[nearest].key}, breaks {' and '.join(broken)}"
        )

    def _needed(self, name: str, share: float) -> str:
        for site in self.sites:
            if name == site.limit:
                return (
                    f"the budget {site.budget} on {site.device.name} (ask for at least"
                    f" {share * site.budget_ms:.4g}ms at confidence {self.confidence:g})"
                )
        limit = self.limits.given()[name]
        return f"the limit of {limit} {name} (ask for at least {round(share * limit + 0.5)})"

    def _bounds_ms(self, site: Site, architectures: Sequence[Architecture]) -> Array:
        """What is held against the budget: the confident bound, or the estimate with headroom."""
        bounds_ms = site.predictor.quantile_ms(architectures, self.confidence)
        if self.headroom:
            latency_ms = site.predictor.predict(architectures).latency_ms
            bounds_ms = np.maximum(bounds_ms, latency_ms / (1 - self.headroom))
        return bounds_ms
