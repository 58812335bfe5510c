"""What the steps of one search share, and how they report."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bignas.device_db.errors import InputError
from bignas.device_db.store import Store
from bignas.search.requirements import Site
from bignas.search.result import SearchConfig
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.data import ImageData
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace

__all__ = ["Report", "SearchContext", "SearchProgress"]


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """Where a search stands; `note` names the best so far."""

    phase: str
    done: int
    total: int
    eta_seconds: float
    note: str


Report = Callable[[SearchProgress], None]


@dataclass(frozen=True, eq=False)
class SearchContext:
    """One search: its supernet and images, its devices, what is asked, and where results go.

    `accuracy` chooses what is evaluated, in so many `processes` at a time. The predictors of the
    sites are about the space of the network. Raises InputError when `accuracy` is about other
    weights or data.
    """

    network: Supernet
    checkpoint: Checkpoint
    data: ImageData
    store: Store
    sites: tuple[Site, ...]
    config: SearchConfig
    out: Path
    report: Report
    accuracy: AccuracyPredictor | None
    processes: int

    def __post_init__(self) -> None:
        weights, images = self.checkpoint.digest, self.data.digest
        if self.accuracy is not None and not self.accuracy.matches(weights, images):
            raise InputError("the accuracy predictor is about other weights or data")

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.network.space
