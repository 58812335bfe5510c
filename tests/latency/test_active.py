"""The next batch is new, cheap when costs say so, and teaches more than a random one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bignas.latency.active import next_batch

Array = NDArray[np.float64]
NONE = np.zeros(0, dtype=np.intp)


def basis(count: int = 300, columns: int = 12) -> Array:
    return np.random.default_rng(0).normal(size=(count, columns)) / np.arange(1, columns + 1)


def left_over(rows: Array, measured: NDArray[np.intp], noise: float) -> float:
    """Mean posterior variance of all candidates, by the textbook formula."""
    known = rows[measured]
    precision = np.eye(rows.shape[1]) + known.T @ known / noise
    return float(np.einsum("ij,ij->i", rows @ np.linalg.inv(precision), rows).mean())


def test_it_returns_distinct_candidates_that_were_not_measured() -> None:
    measured = np.arange(0, 300, 2)
    batch = next_batch(basis(), measured, 20, np.random.default_rng(0), noise=0.1)
    assert len(set(batch.tolist())) == 20
    assert not np.intersect1d(batch, measured).size


def test_it_returns_fewer_when_fewer_are_left() -> None:
    batch = next_batch(basis(6), np.arange(4), 5, np.random.default_rng(0), noise=0.1)
    assert sorted(batch.tolist()) == [4, 5]


def test_it_leaves_less_variance_than_random_batches() -> None:
    rows = basis()
    rng = np.random.default_rng(1)
    chosen = left_over(rows, next_batch(rows, NONE, 10, rng, noise=0.1), 0.1)
    random = [left_over(rows, rng.choice(300, 10, replace=False), 0.1) for _ in range(50)]
    assert chosen < min(random)


def test_it_regards_what_was_measured() -> None:
    rows = basis()
    rng = np.random.default_rng(1)
    first = next_batch(rows, NONE, 8, rng, noise=0.01)
    second = next_batch(rows, first, 8, np.random.default_rng(2), noise=0.01)
    blind = next_batch(rows, NONE, 16, np.random.default_rng(2), noise=0.01)[:8]
    assert left_over(rows, np.concatenate([first, second]), 0.01) < left_over(
        rows, np.concatenate([first, blind]), 0.01
    )


def test_of_equal_candidates_the_cheaper_is_chosen() -> None:
    rows = np.vstack([basis(100), basis(100)])
    costs = np.concatenate([np.full(100, 3.0), np.ones(100)])
    batch = next_batch(rows, NONE, 10, np.random.default_rng(0), 0.1, costs)
    assert (batch >= 100).all()


def test_targets_decide_what_is_worth_measuring() -> None:
    rows = np.eye(6)
    targets = np.array([[0.0, 1, 0, 0, 3, 0], [0, 0, 0, 0, 3, 0]])
    batch = next_batch(rows, NONE, 2, np.random.default_rng(0), 0.1, None, targets)
    assert batch.tolist() == [4, 1]
    with pytest.raises(ValueError, match="targets"):
        next_batch(rows, NONE, 2, np.random.default_rng(0), 0.1, None, targets[:, :5])


def test_what_was_measured_at_once_counts_like_one_after_the_other() -> None:
    """The greedy choice of six is that of three, taken for measured, and three more."""
    rows = basis(40)
    whole = next_batch(rows, NONE, 6, np.random.default_rng(0), 0.1)
    rest = next_batch(rows, whole[:3], 3, np.random.default_rng(0), 0.1)
    assert rest.tolist() == whole[3:].tolist()


@pytest.mark.parametrize(
    ("noise", "costs"), [(0.0, None), (0.1, np.zeros(300)), (0.1, np.ones(299))]
)
def test_nonsense_is_refused(noise: float, costs: Array | None) -> None:
    with pytest.raises(ValueError, match=r"positive|fit"):
        next_batch(basis(), NONE, 5, np.random.default_rng(0), noise, costs)
