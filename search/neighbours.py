"""Small changes of architectures, many at once, as rows of option numbers.

A row holds the positions of `SearchSpace.positions`: integers [dimensions], from 0 to size - 1.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rows", "double_changes", "row_codes", "single_changes"]

Rows = NDArray[np.int64]

_CODE_SEED = 20200324


def single_changes(rows: Rows, sizes: tuple[int, ...]) -> Rows:
    """All rows that differ from one of `rows` [n, dimensions] in one dimension, row by row."""
    changed = [_with(rows, dimension, size) for dimension, size in enumerate(sizes)]
    return np.concatenate(changed, axis=1).reshape(-1, len(sizes)) if sizes else rows[:0]


def double_changes(rows: Rows, sizes: tuple[int, ...]) -> Rows:
    """All rows that differ from one of `rows` [n, dimensions] in exactly two dimensions.

    Under a limit one dimension often has to give what another one takes.
    """
    changed = [
        _with(_with(rows, first, sizes[first]).reshape(-1, len(sizes)), second, sizes[second])
        for first, second in itertools.combinations(range(len(sizes)), 2)
    ]
    return np.concatenate([one.reshape(-1, len(sizes)) for one in changed] or [rows[:0]])


def row_codes(rows: Rows, sizes: tuple[int, ...]) -> NDArray[np.uint64]:
    """A number for each row; equal rows have equal ones, others differ but for 64-bit luck.

    Zobrist hashing: the sum of a random number for each option taken.
    """
    random = np.random.default_rng(_CODE_SEED)
    codes = np.zeros(len(rows), dtype=np.uint64)
    for dimension, size in enumerate(sizes):
        numbers = random.integers(0, 2**64, size, dtype=np.uint64)
        codes += numbers[rows[:, dimension]]
    return codes


def _with(rows: Rows, dimension: int, size: int) -> Rows:
    """Each row with every other option of one dimension: [n, size - 1, dimensions]."""
    changed = np.repeat(rows[:, None, :], size - 1, axis=1)
    steps = np.arange(1, size)
    changed[:, :, dimension] = (rows[:, dimension, None] + steps) % size
    return changed
