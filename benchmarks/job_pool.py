"""Independent jobs that share the processors, for benchmarks that train several networks."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

__all__ = ["results", "threads_each"]

Result = TypeVar("Result")


def threads_each(processes: int) -> int:
    """How many threads each of so many processes may use."""
    return max(1, (os.cpu_count() or 1) // processes)


def results(jobs: Sequence[Callable[[], Result]], processes: int) -> Iterator[tuple[int, Result]]:
    """Do so many jobs at once; yields their places and what they return, as they end.

    They start in their order, in processes of their own when there is more than one, which their
    functions and arguments must be able to reach.
    """
    if processes == 1:
        for place, job in enumerate(jobs):
            yield place, job()
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        places = {pool.submit(job): place for place, job in enumerate(jobs)}
        for future in as_completed(places):
            yield places[future], future.result()
