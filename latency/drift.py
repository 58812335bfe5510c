"""How much slower a machine is than it was when it was profiled, by subnets measured again.

A machine is not the one of an hour ago: networks of all sizes take a percent or more longer, or
less, which neither the anchor nor the shared cache shows. So subnets of the profile run beside what
is measured now, other ones in each batch, as each has changes of its own, too.

Batches differ by what the machine does meanwhile and by which references they had. How much of it
is the machine's, the references of one batch tell, which differ by the latter alone: the mean of a
batch is shrunk towards that of all, as random effects are (Laird and Ware, "Random-effects models
for longitudinal data", Biometrics 38, 1982; moments as in DerSimonian and Laird, "Meta-analysis in
clinical trials", Controlled Clinical Trials 7, 1986).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bignas.supernet.architecture import Architecture

__all__ = ["drifts", "references"]

Array = NDArray[np.float64]


def references(
    profiled: Sequence[tuple[Architecture, float]], count: int, batch: int
) -> list[tuple[Architecture, float]]:
    """Return references for a batch, spread evenly over the latencies of all that was profiled.

    `profiled` are architectures with their milliseconds. Batches share none as long as there are
    enough; there are at most `count`.
    """
    ascending = sorted(profiled, key=lambda one: one[1])
    step = max(1, len(ascending) // count)
    return ascending[batch % step :: step][:count]


def drifts(log_ratios: Sequence[Array]) -> Array:
    """Return what each batch is off by, from log(now / then) of its references; [batches].

    Raises ValueError for a batch without references.
    """
    if any(len(one) == 0 for one in log_ratios):
        raise ValueError("a batch without references tells no drift")
    means = np.array([one.mean() for one in log_ratios])
    counts = np.array([len(one) for one in log_ratios])
    overall = float(np.average(means, weights=counts))
    freedom = int(counts.sum()) - len(counts)
    if len(means) < 2 or freedom < 1:
        return np.full(len(means), overall)
    rest = sum(float(((one - one.mean()) ** 2).sum()) for one in log_ratios) / freedom
    of_means = rest / counts
    of_batches = max(0.0, float(np.var(means, ddof=1) - of_means.mean()))
    return overall + (means - overall) * of_batches / np.maximum(of_batches + of_means, 1e-300)
