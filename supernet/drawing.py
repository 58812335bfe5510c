"""Drawing children of a space to learn from, to test on and to compare."""

from collections.abc import Callable, Collection

import numpy as np

from bignas.device_db.errors import ArchitectureError
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["draw_children", "draw_fresh_children", "spread_children"]

_TILTED_EVERY = 4  # one in so many children
_LEARN, _TEST = 0, 1  # purposes of random numbers
_POOL = 50  # children drawn for each one that is chosen by its size


def draw_children(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Distinct architectures to learn from: the first of `count` are those of a smaller `count`.

    Smallest, middle and biggest; the rest uniform, but for one in four: these draw how big all
    their options tend to be first, as uniform ones are seldom small or big altogether. Fewer come
    back where the space is smaller.
    """
    rng = np.random.default_rng((seed, _LEARN))
    ends = list(dict.fromkeys([space.smallest(), space.middle(), space.biggest()]))
    return [*ends, *_fresh(space, max(0, count - len(ends)), ends, rng, tilted=True)][:count]


def draw_fresh_children(
    space: SearchSpace, count: int, known: Collection[Architecture], seed: int
) -> list[Architecture]:
    """Up to `count` distinct architectures outside `known`, uniform, to test what was learned."""
    return _fresh(space, count, known, np.random.default_rng((seed, _TEST)), tilted=False)


def spread_children(
    space: SearchSpace,
    count: int,
    seed: int,
    fits: Callable[[Architecture], bool] = lambda _: True,
) -> list[Architecture]:
    """Up to `count` distinct architectures spread over the range of MACs, smallest first.

    Of those that fit, the smallest and the biggest drawn, and those whose log MACs are nearest to
    equal steps between them. Raises ArchitectureError when none fits.
    """
    pool = [arch for arch in draw_children(space, _POOL * count, seed) if fits(arch)]
    if not pool:
        raise ArchitectureError(f"no child of space {space.name!r} fits")
    pool.sort(key=space.macs)
    log_macs = np.log([space.macs(arch) for arch in pool])
    steps = np.linspace(log_macs[0], log_macs[-1], count)
    nearest = [int(np.abs(log_macs - step).argmin()) for step in steps]
    return list(dict.fromkeys(pool[index] for index in nearest))


def _fresh(
    space: SearchSpace,
    count: int,
    known: Collection[Architecture],
    rng: np.random.Generator,
    *,
    tilted: bool,
) -> list[Architecture]:
    """Up to `count` distinct architectures outside `known`, some of them tilted if asked for.

    Tilted ones draw a common probability, and each option's number from its binomial distribution.
    """
    taken = set(known)
    if 2 * (count + len(taken)) >= space.size():
        rest = [arch for arch in space.architectures() if arch not in taken]
        return [rest[pick] for pick in rng.permutation(len(rest))[:count]]
    last = np.array([len(options) - 1 for _, options in space.dimensions()], dtype=np.int64)
    drawn: dict[Architecture, None] = {}
    turn = 0
    while len(drawn) < count:  # a uniform draw is new with a probability of more than one half
        turn += 1
        if tilted and turn % _TILTED_EVERY == 0:
            arch = space.at(rng.binomial(last, rng.random()).tolist())
        else:
            arch = space.sample(rng)
        if arch not in taken:
            drawn[arch] = None
    return list(drawn)
