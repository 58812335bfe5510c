"""Pareto fronts of accuracy (up) against latency (down)."""

from collections.abc import Iterable

from bignas.search.trial import Trial

__all__ = ["hypervolume", "pareto_front"]


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials that no other one beats in both objectives, fastest first.

    Feasible or not plays no role; trials without an accuracy are left out. Of trials that are
    equal in both objectives the first one stays.
    """
    evaluated = [
        (trial.latency_ms, trial.top1, trial) for trial in trials if trial.top1 is not None
    ]
    evaluated.sort(key=lambda entry: (entry[0], -entry[1]))
    front: list[Trial] = []
    best_top1 = -1.0
    for _, top1, trial in evaluated:
        if top1 > best_top1:
            front.append(trial)
            best_top1 = top1
    return front


def hypervolume(trials: Iterable[Trial], reference_latency_ms: float) -> float:
    """Return the area between the front and the point (reference latency, accuracy 0), in ms.

    A larger value is a better front; trials slower than the reference add nothing. (Zitzler and
    Thiele, "Multiobjective optimization using evolutionary algorithms", PPSN 1998.)
    """
    area = best_top1 = 0.0
    for trial in pareto_front(trials):
        if trial.top1 is not None and trial.latency_ms < reference_latency_ms:
            area += (trial.top1 - best_top1) * (reference_latency_ms - trial.latency_ms)
            best_top1 = trial.top1
    return area
