"""Exhaustive search: every architecture of a small space, in a random order.

The latency predictor rejects what is too slow, so a space of a million can be looked at when
accuracy is predicted too. Where accuracy is measured, what is looked at remains a random sample
unless the space is small.
"""

from collections.abc import Sequence

import numpy as np

from bignas.device_db.errors import InputError
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["LARGEST_SPACE", "ExhaustiveSearch"]

LARGEST_SPACE = 5_000_000


class ExhaustiveSearch:
    """Suggests every architecture once. Raises InputError for a space that is too large."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        if space.size() > LARGEST_SPACE:
            raise InputError(
                f"space {space.name!r} has {space.size():,} architectures, the strategy"
                f" 'exhaustive' takes at most {LARGEST_SPACE:,}; choose another strategy"
            )
        self.space = space
        self._sizes = [len(options) for _, options in space.dimensions()]
        self._order = np.random.default_rng(seed).permutation(space.size())
        self._told: set[Architecture] = set()
        self._next = 0

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn which architectures were looked at."""
        self._told.update(trial.architecture for trial in trials)

    def suggest(self, count: int) -> list[Architecture]:
        """The next `count` architectures it was not told about; fewer at the end of the space."""
        suggestions: list[Architecture] = []
        leading = True
        for index in range(self._next, len(self._order)):
            if len(suggestions) == count:
                break
            position = np.unravel_index(self._order[index], self._sizes) if self._sizes else ()
            architecture = self.space.at([int(one) for one in position])
            if architecture not in self._told:
                suggestions.append(architecture)
                leading = False
            elif leading:
                self._next = index + 1
        return suggestions
