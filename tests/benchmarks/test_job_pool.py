"""Jobs of benchmarks that run side by side: each is done once, and reported under its place."""

import operator
import os
from functools import partial

import pytest
from job_pool import results, threads_each


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_is_reported_under_its_place(processes: int) -> None:
    jobs = [partial(operator.mul, number, number) for number in range(5)]
    assert sorted(results(jobs, processes)) == [(place, place * place) for place in range(5)]


def test_several_processes_are_not_this_one() -> None:
    assert {result for _, result in results([os.getpid] * 2, 1)} == {os.getpid()}
    assert os.getpid() not in {result for _, result in results([os.getpid] * 2, 2)}


def test_a_job_that_fails_ends_the_run() -> None:
    with pytest.raises(ZeroDivisionError):
        list(results([partial(operator.truediv, 1, 0)], 2))


def test_processes_share_the_processors() -> None:
    cores = os.cpu_count() or 1
    assert threads_each(1) == cores
    assert threads_each(10 * cores) == 1
