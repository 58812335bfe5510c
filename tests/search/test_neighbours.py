"""Changes of rows of option numbers, and the numbers that stand for rows."""

import numpy as np
import pytest

from bignas.search.neighbours import double_changes, row_codes, single_changes

SIZES = (2, 3, 4)


@pytest.mark.parametrize(("function", "distance"), [(single_changes, 1), (double_changes, 2)])
def test_all_rows_at_a_distance_and_no_others(function: object, distance: int) -> None:
    every = np.stack(np.unravel_index(np.arange(24), SIZES), axis=1)
    for row in every:
        found = function(row[None], SIZES)  # type: ignore[operator]
        wanted = every[(every != row).sum(axis=1) == distance]
        assert sorted(found.tolist()) == sorted(wanted.tolist())


def test_codes_tell_rows_apart() -> None:
    every = np.stack(np.unravel_index(np.arange(24), SIZES), axis=1)
    codes = row_codes(every, SIZES)
    assert len(set(codes.tolist())) == 24
    assert (row_codes(every[::-1], SIZES) == codes[::-1]).all()
