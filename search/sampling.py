"""Drawing architectures that are new, in bounded time."""

from collections.abc import Callable, Collection

import numpy as np

from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["draw_fresh"]

ATTEMPTS_PER_ARCHITECTURE = 30
ENUMERABLE_SIZE = 20_000


def draw_fresh(
    propose: Callable[[], Architecture],
    space: SearchSpace,
    count: int,
    known: Collection[Architecture],
    rng: np.random.Generator,
) -> list[Architecture]:
    """Up to `count` architectures that are neither in `known` nor repeated.

    Asks `propose` first, then samples at random, then enumerates what is left of a small space.
    Fewer than `count` (in the end none) come back once the space is used up.
    """
    taken = set(known)
    drawn: list[Architecture] = []
    for source in (propose, lambda: space.sample(rng)):
        for _ in range(ATTEMPTS_PER_ARCHITECTURE * count):
            if len(drawn) == count:
                return drawn
            architecture = source()
            if architecture not in taken:
                taken.add(architecture)
                drawn.append(architecture)
    if len(drawn) < count and space.size() <= ENUMERABLE_SIZE:
        rest = [architecture for architecture in space.architectures() if architecture not in taken]
        order = rng.permutation(len(rest))[: count - len(drawn)]
        drawn.extend(rest[index] for index in order)
    return drawn
