"""What a search strategy is, and where strategies are found by name.

A strategy suggests architectures and is told how they did; it never evaluates one itself. It is a
function of its seed and the trials it was told: a search resumes by telling them again, and two
calls of `suggest` with nothing told in between give the same answer.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Protocol, TypeAlias

from bignas.device_db.errors import ArchitectureError, BignasError, InputError
from bignas.search.coarse_to_fine import CoarseToFine
from bignas.search.evolution import RegularizedEvolution
from bignas.search.exhaustive import ExhaustiveSearch
from bignas.search.guided import GuidedSearch
from bignas.search.local_search import LocalSearch
from bignas.search.nsga2 import NSGA2Search
from bignas.search.random_search import RandomSearch
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = [
    "BUILT_IN",
    "DEFAULT_STRATEGY",
    "ENTRY_POINT_GROUP",
    "Strategy",
    "StrategyFactory",
    "create_strategy",
    "strategy_names",
]

ENTRY_POINT_GROUP = "bignas.strategies"
DEFAULT_STRATEGY = "guided"


class Strategy(Protocol):
    """A search algorithm over one space."""

    def suggest(self, count: int) -> list[Architecture]:
        """Up to `count` distinct architectures of the space it was not told about yet.

        Fewer come back, in the end none, when the space is used up.
        """

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn how architectures did, whether it suggested them itself or not."""


StrategyFactory: TypeAlias = Callable[[SearchSpace, int], Strategy]  # space, seed

BUILT_IN: Mapping[str, StrategyFactory] = MappingProxyType(
    {
        "guided": GuidedSearch,
        "coarse-to-fine": CoarseToFine,
        "local": LocalSearch,
        "evolution": RegularizedEvolution,
        "nsga2": NSGA2Search,
        "random": RandomSearch,
        "exhaustive": ExhaustiveSearch,
    }
)


def strategy_names() -> list[str]:
    """Names of all strategies, built in or offered by installed packages."""
    return sorted({*BUILT_IN, *_outside()})


def create_strategy(name: str, space: SearchSpace, seed: int) -> Strategy:
    """The strategy of this name, new; what it does wrong becomes an InputError of one line.

    Other packages offer a strategy as an entry point of the group `bignas.strategies`: a callable
    that takes the space and the seed. Raises InputError when there is none of that name, or it
    cannot be loaded or made.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](space, seed)
    outside = _outside()
    if name not in outside:
        raise InputError(
            f"there is no search strategy {name!r}; choose one of {', '.join(strategy_names())}"
        )
    try:
        factory: StrategyFactory = outside[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the search strategy {name!r} ({outside[name].value}) cannot be loaded: {error}"
        ) from error
    with _blaming(name):
        return _Outsider(name, space, factory(space, seed))


class _Outsider:
    """A strategy of another package, whose mistakes are named as such."""

    def __init__(self, name: str, space: SearchSpace, strategy: Strategy) -> None:
        self._name = name
        self._space = space
        self._strategy = strategy

    def suggest(self, count: int) -> list[Architecture]:
        with _blaming(self._name):
            suggestions = list(self._strategy.suggest(count))
        for one in suggestions:
            if not isinstance(one, Architecture):
                raise InputError(
                    f"the search strategy {self._name!r} suggested {one!r}, not an architecture"
                )
            try:
                self._space.check(one)
            except ArchitectureError as error:
                raise InputError(
                    f"the search strategy {self._name!r} left the space: {error}"
                ) from error
        return suggestions

    def tell(self, trials: Sequence[Trial]) -> None:
        with _blaming(self._name):
            self._strategy.tell(trials)


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Turn whatever a strategy of another package raises into one line about it."""
    try:
        yield
    except BignasError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"the search strategy {name!r} failed: {reason}") from error


def _outside() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
