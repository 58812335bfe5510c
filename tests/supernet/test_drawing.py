"""Children that are drawn are distinct, repeatable and spread as they are meant to be."""

import numpy as np
import pytest

from bignas.device_db.errors import ArchitectureError
from bignas.supernet.architecture import Architecture
from bignas.supernet.drawing import draw_children, draw_fresh_children, spread_children
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space

SPACE = load_space("cifar")


def test_children_are_distinct_and_more_of_them_begin_with_the_fewer(
    tiny_space: SearchSpace,
) -> None:
    many = draw_children(SPACE, 200, seed=3)
    assert len(set(many)) == 200
    assert draw_children(SPACE, 50, seed=3) == many[:50]
    assert draw_children(SPACE, 50, seed=4) != many[:50]
    assert {SPACE.smallest(), SPACE.middle(), SPACE.biggest()} < set(many)
    everything = draw_children(tiny_space, 10_000, seed=0)
    assert sorted(one.key for one in everything) == sorted(
        one.key for one in tiny_space.architectures()
    )


def test_children_reach_both_ends_of_the_range_of_macs() -> None:
    def at_the_ends(archs: list[Architecture]) -> tuple[int, int]:
        macs = np.log([SPACE.macs(arch) for arch in archs])
        low, high = np.log([SPACE.macs(SPACE.smallest()), SPACE.macs(SPACE.biggest())])
        share = (macs - low) / (high - low)
        return int((share < 0.15).sum()), int((share > 0.85).sum())

    drawn, uniform = (
        at_the_ends(draw_children(SPACE, 400, seed=0)),
        at_the_ends(draw_fresh_children(SPACE, 400, [], seed=0)),
    )
    assert all(one > 2 * other for one, other in zip(drawn, uniform, strict=True))


def test_fresh_children_were_not_learned_from(tiny_space: SearchSpace) -> None:
    known = draw_children(tiny_space, 20, seed=0)
    fresh = draw_fresh_children(tiny_space, 10_000, known, seed=0)
    assert len(fresh) == len(set(fresh)) == tiny_space.size() - len(known)
    assert not set(fresh) & set(known)
    assert draw_fresh_children(SPACE, 20, [], seed=1) == draw_fresh_children(SPACE, 20, [], seed=1)


def test_spread_children_go_from_the_smallest_to_the_biggest_in_equal_steps() -> None:
    archs = spread_children(SPACE, 8, seed=0)
    assert (archs[0], archs[-1], len(archs)) == (SPACE.smallest(), SPACE.biggest(), 8)
    steps = np.diff(np.log([SPACE.macs(arch) for arch in archs]))
    assert np.abs(steps / steps.mean() - 1).max() < 0.3
    even = spread_children(SPACE, 8, seed=0, fits=lambda arch: SPACE.macs(arch) % 16 == 0)
    assert all(SPACE.macs(arch) % 16 == 0 for arch in even)
    with pytest.raises(ArchitectureError):
        spread_children(SPACE, 8, seed=0, fits=lambda _: False)
